"""Builds: submitted, cancelled, retried. A submission joins or reuses every job that is already there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Insert, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from farm.database.base import Base, now
from farm.database.ids import new_id
from farm.database.tables import (
    IS_USABLE,
    Artifact,
    Build,
    BuildJob,
    Event,
    Job,
    JobInput,
    Model,
    Version,
    Wanted,
)
from farm.errors import Conflict, NotFound
from farm.fleet.workers import Fleet
from farm.formats.sources import TAKEN, Look
from farm.planning import keys, parameters, targets
from farm.planning.plan import Plan, PlannedJob, plan
from farm.planning.targets import Choice
from farm.queue import build_states, jobs, leases, transitions, turns
from farm.queue.turns import Bell, Turns
from farm.registry import provenance, publish
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet
from farm.specs.runtime import Runtime, Target
from farm.specs.states import BUILD_ENDED, BuildState, JobState, Reuse, build_state
from farm.trust import plugins

_LARGE = {"recipe", "toolchain", "outputs"}

# The statements of every submission are made once: making them is a good part of what they cost.
_BLOBS = (
    select(Artifact.digest)
    .where(Artifact.digest.in_(bindparam("digests", expanding=True)), Artifact.lost_at.is_(None))
    # Shared with other submissions, and kept from garbage collection until this one is committed.
    .with_for_update(key_share=True, read=True)
)
_VERSION = (
    select(Model.id, Version.id, Version.number)
    .outerjoin(
        Version,
        and_(
            Version.model_id == Model.id,
            Version.source_digest == bindparam("digest"),
            Version.variant == bindparam("variant"),
        ),
    )
    .where(Model.name == bindparam("name"))
)
# Locked, so that none of them ends between this look and the commit: a new job that waits for one
# would miss its end.
_JOBS = (
    select(*(column for column in Job.__table__.c if column.name not in _LARGE))
    .where(Job.key.in_(bindparam("keys", expanding=True)), IS_USABLE)
    .order_by(Job.id)
    # Not their keys, which an engine that is being published refers to.
    .with_for_update(key_share=True)
)
_JOBS_OF_BUILD = (
    select(Job.id)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(BuildJob.build_id == bindparam("build_id"))
    .order_by(Job.id)
    .with_for_update(of=Job, key_share=True)
)
_INSERTS: dict[type[Base], Insert] = {
    row: insert(Base.metadata.tables[row.__tablename__]) for row in (Build, BuildJob, Event, Wanted)
}
_JOB_INSERT = insert(Base.metadata.tables[Job.__tablename__]).returning(
    Job.id, sort_by_parameter_order=True
)


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A build with its jobs and engines, as they are in the database now."""

    build: Build
    model: str
    version: int
    jobs: Sequence[tuple[Job, str]]  #: each with how the build came by it, in the plan's order
    wanted: Sequence[Wanted]
    doubts: Mapping[str, Sequence[str]] = field(default_factory=dict)  #: of engines, by their ids


@dataclass(frozen=True, kw_only=True)
class Submitted:
    build_id: str
    attached: Attached | None  #: None when nothing was done: the build was there before
    ready: Sequence[Bell] = ()  #: to ring after the commit


def submit(
    session: Session,
    request: BuildRequest,
    *,
    fleet: Fleet,
    runtimes: Sequence[Runtime],
    plugin_keys: Collection[str] = (),
    gates: GateSet = GateSet(),
    look: Look = Look(),
    client: str = "",
    idempotency_key: str | None = None,
    most_jobs: int | None = None,
) -> Submitted:
    """Take a build: plan its jobs, and create those that nobody has asked for yet.

    Parameters:
        look: what is known of the source's graph.
        gates: the farm's, where the request sets none. The build keeps them.
        most_jobs: that it may have; by default any number.

    Raises:
        InvalidRequest, UnknownGpu, TargetUnsupported, CalibrationMissing, PluginRefused
        NotFound: a blob hasn't been uploaded.
        Conflict: the idempotency key was used for another request.
    """
    document = request.model_dump(mode="json")
    if idempotency_key is not None:
        first = session.scalar(select(Build).where(Build.idempotency_key == idempotency_key))
        if first is not None:
            if first.request != document:
                raise Conflict("this Idempotency-Key was used for another request")
            return Submitted(build_id=first.id, attached=None)
    version_id, number = _version(session, request)
    if request.gates:
        gates = gates.changed(request.gates)
    planned = _plan(request, _choose(request, fleet, runtimes), fleet, gates, look, most_jobs)
    plugins.require(session, request.options.plugins, plugin_keys)
    build = Build(
        id=new_id(),
        version_id=version_id,
        state=BuildState.QUEUED,
        request=document,
        priority=request.priority,
        client=client,
        idempotency_key=idempotency_key,
        gates=gates.model_dump(),
        created_at=now(),
    )
    _insert(session, Build, [_columns(build)])
    created = {"build_id": build.id, "kind": "build", "state": build.state, "data": {}, "at": now()}
    _insert(session, Event, [created])
    return _attach(session, build, request.model, number, planned)


def retry(
    session: Session, build_id: str, *, fleet: Fleet, runtimes: Sequence[Runtime]
) -> Submitted:
    """Plan a failed or cancelled build anew, with the toolchain that is there now.

    What has succeeded is kept; what failed runs again. A build that is alive or has succeeded stays
    as it is.

    Raises:
        NotFound
    """
    build = locked(session, build_id)
    if build.state not in (BuildState.FAILED, BuildState.CANCELLED):
        return Submitted(build_id=build.id, attached=None)
    build.state, build.finished_at = BuildState.QUEUED, None
    session.add(
        Event(build_id=build.id, kind="build", state=build.state, data={"cause": "retried"})
    )
    session.flush()
    request = BuildRequest.model_validate(build.request)
    return _plan_anew(session, build, _choose(request, fleet, runtimes), fleet)


def wanting(session: Session, job_id: int) -> Sequence[str]:
    """The live builds that want a job, the oldest first."""
    return session.scalars(
        select(Build.id)
        .join(BuildJob, BuildJob.build_id == Build.id)
        .where(BuildJob.job_id == job_id, Build.state.not_in(BUILD_ENDED))
        .order_by(Build.id)
    ).all()


def replan(
    session: Session,
    build_id: str,
    *,
    instead_of: int,
    attempt: int,
    cause: str,
    fleet: Fleet,
    lease_s: float,
) -> Sequence[Bell]:
    """Plan a build anew that wants a job which its worker can't run, since it has other tools.

    Its targets stay, since the workers of one of them may be starting again just now, and so do its
    places. When the plan is the same nothing is done: it is the worker that lags behind. One build
    after the other is planned so, and the lease renewed by that; in the end the worker leaves the job
    (``farm.queue.leases``).

    Parameters:
        instead_of: the job, which this attempt holds.

    Returns:
        What is to be rung for after the commit.

    Raises:
        LeaseLost
    """
    before = session.scalars(select(BuildJob.job_id).where(BuildJob.build_id == build_id)).all()
    # All jobs, then the build, as everybody locks them.
    held = jobs.locked(session, {*before, instead_of})[instead_of]
    leases.renew(session, instead_of, attempt, lease_s=lease_s)
    build = locked(session, build_id)
    choices = _choices(session, build_id)
    request = BuildRequest.model_validate(build.request)
    if build.state in BUILD_ENDED or held.key in _plan(request, choices, fleet, _gates(build)).jobs:
        return ()
    session.add(Event(build_id=build.id, kind="build", state=build.state, data={"cause": cause}))
    session.flush()
    kept = turns.places(session, build)
    ready = _plan_anew(session, build, choices, fleet, kept).ready
    jobs.cancel(session, before)
    return ready


def _choices(session: Session, build_id: str) -> list[Choice]:
    """The targets that were chosen for a build."""
    rows = session.execute(
        select(Wanted.asked, Wanted.target, Wanted.why)
        .where(Wanted.build_id == build_id)
        .distinct()
        .order_by(Wanted.target)
    )
    return [
        Choice(asked=asked, target=Target.parse(target), why=why) for asked, target, why in rows
    ]


def _plan_anew(
    session: Session,
    build: Build,
    choices: Sequence[Choice],
    fleet: Fleet,
    places: Mapping[str, int] | None = None,
) -> Submitted:
    request = BuildRequest.model_validate(build.request)
    _, number = _version(session, request)
    planned = _plan(request, choices, fleet, _gates(build))
    rows = session.execute(
        select(Job.id, Job.key, Job.attempt, BuildJob.reuse)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build.id)
    ).all()
    before = _Before(
        attempts={row.key: row.attempt for row in rows},
        reuse={row.id: Reuse(row.reuse) for row in rows},
        places=places or {},
    )
    session.execute(delete(Wanted).where(Wanted.build_id == build.id))
    session.execute(delete(BuildJob).where(BuildJob.build_id == build.id))
    return _attach(session, build, request.model, number, planned, before)


def cancel(session: Session, build_id: str) -> bool:
    """Cancel a build, and those of its jobs that no other build wants. Nothing when it has ended.

    Returns:
        Whether that was something to do.

    Raises:
        NotFound
    """
    build = locked(session, build_id)
    if build.state in BUILD_ENDED:
        return False
    build_states.set_build_state(session, build, BuildState.CANCELLED)
    wanted = session.scalars(select(BuildJob.job_id).where(BuildJob.build_id == build.id))
    jobs.cancel(session, wanted.all())
    return True


def locked(session: Session, build_id: str) -> Build:
    """A build, locked with its jobs until the end of the unit of work.

    Raises:
        NotFound
    """
    # Jobs before builds, as workers lock them: the other way round each would wait for the other.
    session.execute(_JOBS_OF_BUILD, {"build_id": build_id})
    build = session.scalar(select(Build).where(Build.id == build_id).with_for_update())
    if build is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return build


def _choose(request: BuildRequest, fleet: Fleet, runtimes: Sequence[Runtime]) -> list[Choice]:
    online = fleet.online_queues
    return [
        targets.choose(asked, runtimes=runtimes, online_queues=online) for asked in request.targets
    ]


def _plan(
    request: BuildRequest,
    choices: Sequence[Choice],
    fleet: Fleet,
    gates: GateSet,
    look: Look = TAKEN,
    most_jobs: int | None = None,
) -> Plan:
    return plan(request, choices, fleet.toolchain, fleet.online_queues, gates, look, most_jobs)


def _gates(build: Build) -> GateSet:
    """A build's gates; the defaults for one that was submitted before there were any."""
    return GateSet.model_validate(build.gates or {})


def _check_blobs(session: Session, request: BuildRequest) -> None:
    digests = {"source": request.source.digest}
    if request.calibration:
        digests["calibration"] = request.calibration.digest
    if request.evaluation:
        digests["evaluation"] = request.evaluation.digest
    there = set(session.connection().scalars(_BLOBS, {"digests": list(digests.values())}))
    for role, digest in digests.items():
        if digest not in there:
            raise NotFound(
                f"the {role} {digest} isn't here", hint="upload it first: POST /v1/blobs"
            )


def _version(session: Session, request: BuildRequest) -> tuple[int, int]:
    """The version's id and number; a source that the model hasn't had yet is its next one.

    Raises:
        NotFound: a blob of the request hasn't been uploaded.
    """
    digest, architecture = request.source.digest, request.source.architecture
    told = {
        "fixed_inputs": request.fixed_inputs or None,
        "architecture": architecture.model_dump(mode="json") if architecture else None,
    }
    variant = keys.variant(**told)
    found = (
        session.connection()
        .execute(_VERSION, {"digest": digest, "name": request.model, "variant": variant})
        .one_or_none()
    )
    is_known = found is not None and found[1] is not None
    _check_blobs(session, request)
    if found is not None and is_known:
        return found[1], found[2]
    model_id = found[0] if found is not None else _new_model(session, request.model)
    newest = session.scalar(select(func.max(Version.number)).where(Version.model_id == model_id))
    version = Version(
        model_id=model_id,
        number=(newest or 0) + 1,
        source_digest=digest,
        source_format=request.source.format,
        variant=variant,
        **told,
    )
    session.add(version)
    session.flush()
    return version.id, version.number


def _new_model(session: Session, name: str) -> int:
    model = Model(name=name)
    session.add(model)
    session.flush()
    return model.id


def _insert(session: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows without the unit of work's bookkeeping, which would be half of a submission's time."""
    session.connection().execute(_INSERTS[table], list(rows))


def _columns(row: Base) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}


@dataclass(frozen=True, kw_only=True)
class _Before:
    """What a build had before it was planned anew."""

    attempts: Mapping[str, int] = field(default_factory=dict)  #: key → its last attempt
    reuse: Mapping[int, Reuse] = field(default_factory=dict)  #: job → how the build came by it
    places: Mapping[str, int] = field(default_factory=dict)  #: queue → `farm.queue.turns`


def _attach(
    session: Session,
    build: Build,
    model: str,
    version: int,
    planned: Plan,
    before: _Before | None = None,
) -> Submitted:
    """Give a build its jobs: take those of the same key that are usable, create the others."""
    before = before or _Before()
    parameters.keep(session, planned.shared)
    usable = _usable(session, planned)
    places = Turns(session, build, before.places)
    ready = places.hurry(usable.values())
    created = _create(session, build, planned, usable, places, before.attempts)
    rows = usable | created
    reuse = {key: before.reuse.get(job.id) or _reuse(job) for key, job in usable.items()}
    links = [
        {
            "build_id": build.id,
            "job_id": rows[key].id,
            "reuse": reuse.get(key, Reuse.RAN),
            "position": position,
        }
        for position, key in enumerate(planned.jobs)
    ]
    wanted: Sequence[Wanted] = [
        Wanted(
            build_id=build.id,
            target=str(engine.choice.target),
            precision=engine.precision,
            asked=engine.choice.asked,
            why=engine.choice.why,
            build_job_id=rows[engine.build.key].id,
            measure_job_id=rows[engine.measure.key].id,
            engine_id=None,
        )
        for engine in planned.engines
    ]
    _insert(session, BuildJob, links)
    _insert(session, Wanted, map(_columns, wanted))
    done = {job.id for job in usable.values() if job.state == JobState.SUCCEEDED}
    if any({want.build_job_id, want.measure_job_id} <= done for want in wanted):
        wanted = publish.publish_build(session, build.id)
    state = build_state(JobState(job.state) for job in rows.values())
    if state != build.state:
        build_states.set_build_state(session, build, state)
        build = session.get_one(Build, build.id, populate_existing=True)
    jobs_in_order = [(rows[key], reuse.get(key, Reuse.RAN)) for key in planned.jobs]
    return Submitted(
        build_id=build.id,
        attached=Attached(
            build=build,
            model=model,
            version=version,
            jobs=jobs_in_order,
            wanted=wanted,
            doubts=provenance.doubts(session, wanted),
        ),
        ready=ready + [Bell.of(job) for job in created.values() if job.state == JobState.QUEUED],
    )


def _usable(session: Session, planned: Plan) -> dict[str, Job]:
    rows = session.connection().execute(_JOBS, {"keys": list(planned.jobs)})
    # Rows stand in for objects, which would take a tenth of a submission's time to make.
    found = {row.key: cast(Job, row) for row in rows}
    ending = [job.id for job in found.values() if job.cancel_requested]
    if ending:
        session.execute(update(Job).where(Job.id.in_(ending)).values(cancel_requested=False))
    return found


def _reuse(job: Job) -> Reuse:
    return Reuse.CACHED if job.state == JobState.SUCCEEDED else Reuse.JOINED


def _create(
    session: Session,
    build: Build,
    planned: Plan,
    usable: dict[str, Job],
    places: Turns,
    attempts: Mapping[str, int],
) -> dict[str, Job]:
    rows: dict[str, Job] = {}
    new = [job for key, job in planned.jobs.items() if key not in usable]
    for job in new:
        needs = [i.job for i in job.inputs.values() if i.job is not None]
        missing = [n for n in needs if n.key in rows or usable[n.key].state != JobState.SUCCEEDED]
        attempt = attempts.get(job.key, 0) + 1
        rows[job.key] = Job(
            key=job.key,
            kind=job.kind,
            title=job.title,
            state=JobState.WAITING if missing else JobState.QUEUED,
            recipe=dict(job.recipe),
            toolchain=dict(job.toolchain),
            runtime=job.target.runtime if job.target else None,
            target=str(job.target) if job.target else None,
            precision=job.precision,
            queue=job.queue,
            priority=build.priority,
            client=build.client,
            place=places.place(job.queue),
            needs=len(missing),
            attempt=attempt,
            first_attempt=attempt,
            rung_at=None if missing else now(),
            created_at=now(),
        )
    if not new:
        return rows
    made = session.connection().execute(_JOB_INSERT, list(map(_columns, rows.values())))
    for row, job_id in zip(rows.values(), made.scalars(), strict=True):
        row.id = job_id
    _connect(session, new, rows | usable)
    events = [
        {
            "job_id": row.id,
            "kind": "job",
            "state": row.state,
            "data": transitions.about(row, build=build.id),
            "at": row.created_at,
        }
        for row in rows.values()
    ]
    _insert(session, Event, events)
    return rows


def _connect(session: Session, planned: Sequence[PlannedJob], rows: dict[str, Job]) -> None:
    edges: list[dict[str, Any]] = [
        {
            "job_id": rows[job.key].id,
            "role": role,
            "needs_id": rows[given.job.key].id,
            "output": given.output,
        }
        for job in planned
        for role, given in job.inputs.items()
        if given.job is not None
    ]
    if edges:
        session.execute(insert(JobInput), edges)


def state(session: Session, build_id: str) -> BuildState:
    """A build's state.

    Raises:
        NotFound
    """
    found = session.scalar(select(Build.state).where(Build.id == build_id))
    if found is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return BuildState(found)
