"""Builds: submitted, cancelled, retried. A submission joins or reuses every job that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from farm import jobs, registry, targets
from farm.db import now
from farm.errors import Conflict, NotFound
from farm.fleet import Fleet
from farm.models import (
    Artifact,
    Build,
    BuildJob,
    Event,
    Job,
    JobInput,
    Model,
    Version,
    Wanted,
    new_id,
)
from farm.plan import Plan, PlannedJob, plan
from farm.schemas import BuildRequest
from farm.specs import Runtime
from farm.states import BUILD_ENDED, BuildState, JobState, Reuse

_USABLE = (JobState.WAITING, JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    build_id: str
    ready: Sequence[int]  #: jobs to announce after the commit
    repeated: bool = False  #: the idempotency key had been used: this is the first answer


def submit(
    session: Session,
    request: BuildRequest,
    *,
    fleet: Fleet,
    runtimes: Sequence[Runtime],
    idempotency_key: str | None = None,
) -> Submitted:
    """Take a build: plan its jobs, and create those that nobody has asked for yet.

    Raises:
        InvalidRequest, UnknownGpu, TargetUnsupported, CalibrationMissing
        NotFound: a blob hasn't been uploaded.
        Conflict: the idempotency key was used for another request.
    """
    document = request.model_dump(mode="json")
    if idempotency_key is not None:
        first = session.scalar(select(Build).where(Build.idempotency_key == idempotency_key))
        if first is not None:
            if first.request != document:
                raise Conflict("this Idempotency-Key was used for another request")
            return Submitted(build_id=first.id, ready=(), repeated=True)
    planned = _plan(session, request, fleet, runtimes)
    build = Build(
        id=new_id(),
        version_id=_version(session, request).id,
        state=BuildState.QUEUED,
        request=document,
        priority=request.priority,
        idempotency_key=idempotency_key,
        created_at=now(),
    )
    session.add(build)
    session.flush()
    created = Event(build_id=build.id, kind="build", state=build.state, data={})
    session.add(created)
    session.flush()
    build.first_event = created.id
    return Submitted(build_id=build.id, ready=_attach(session, build, planned))


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
        return Submitted(build_id=build.id, ready=(), repeated=True)
    planned = _plan(session, BuildRequest.model_validate(build.request), fleet, runtimes)
    attempts = {
        key: attempt + 1
        for key, attempt in session.execute(
            select(Job.key, func.max(Job.attempt))
            .join(BuildJob, BuildJob.job_id == Job.id)
            .where(BuildJob.build_id == build.id)
            .group_by(Job.key)
        )
    }
    session.execute(delete(Wanted).where(Wanted.build_id == build.id))
    session.execute(delete(BuildJob).where(BuildJob.build_id == build.id))
    build.state, build.finished_at = BuildState.QUEUED, None
    session.add(
        Event(build_id=build.id, kind="build", state=build.state, data={"cause": "retried"})
    )
    return Submitted(build_id=build.id, ready=_attach(session, build, planned, attempts))


def cancel(session: Session, build_id: str) -> None:
    """Cancel a build, and those of its jobs that no other build wants. Nothing when it has ended.

    Raises:
        NotFound
    """
    build = locked(session, build_id)
    if build.state in BUILD_ENDED:
        return
    jobs.set_build_state(session, build, BuildState.CANCELLED)
    session.flush()
    wanted = session.scalars(select(BuildJob.job_id).where(BuildJob.build_id == build.id))
    jobs.cancel(session, wanted.all())


def locked(session: Session, build_id: str) -> Build:
    """A build, locked until the end of the unit of work.

    Raises:
        NotFound
    """
    build = session.scalar(select(Build).where(Build.id == build_id).with_for_update())
    if build is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return build


def _plan(
    session: Session, request: BuildRequest, fleet: Fleet, runtimes: Sequence[Runtime]
) -> Plan:
    _check_blobs(session, request)
    online = fleet.online_queues
    choices = [
        targets.choose(asked, runtimes=runtimes, online_queues=online) for asked in request.targets
    ]
    return plan(request, choices, fleet.toolchain)


def _check_blobs(session: Session, request: BuildRequest) -> None:
    digests = {"source": request.source.digest}
    if request.calibration:
        digests["calibration"] = request.calibration.digest
    if request.evaluation:
        digests["evaluation"] = request.evaluation.digest
    there = set(
        session.scalars(select(Artifact.digest).where(Artifact.digest.in_(digests.values())))
    )
    for role, digest in digests.items():
        if digest not in there:
            raise NotFound(f"the {role} {digest} isn't here", hint="upload it first: POST /v1/blobs")


def _version(session: Session, request: BuildRequest) -> Version:
    model = session.scalar(select(Model).where(Model.name == request.model).with_for_update())
    if model is None:
        model = Model(name=request.model)
        session.add(model)
        session.flush()
    same = select(Version).where(
        Version.model_id == model.id, Version.source_digest == request.source.digest
    )
    version = session.scalar(same)
    if version is None:
        newest = session.scalar(
            select(func.max(Version.number)).where(Version.model_id == model.id)
        )
        version = Version(
            model_id=model.id,
            number=(newest or 0) + 1,
            source_digest=request.source.digest,
            source_format=request.source.format,
        )
        session.add(version)
        session.flush()
    return version


def _attach(
    session: Session, build: Build, planned: Plan, attempts: dict[str, int] | None = None
) -> list[int]:
    """Give a build its jobs: take those of the same key that are usable, create the others."""
    usable = _usable(session, planned)
    created = [p for key, p in planned.jobs.items() if key not in usable]
    reuse = {key: _reuse(job) for key, job in usable.items()}
    rows = usable | _create(session, build, created, usable, attempts or {})
    session.execute(
        insert(BuildJob),
        [
            {
                "build_id": build.id,
                "job_id": rows[key].id,
                "reuse": reuse.get(key, Reuse.RAN),
                "position": position,
            }
            for position, key in enumerate(planned.jobs)
        ],
    )
    wanted = [
        Wanted(
            build_id=build.id,
            target=str(engine.choice.target),
            precision=engine.precision,
            asked=engine.choice.asked,
            why=engine.choice.why,
            build_job_id=rows[engine.build.key].id,
            measure_job_id=rows[engine.measure.key].id,
        )
        for engine in planned.engines
    ]
    session.add_all(wanted)
    session.flush()
    if reuse:
        registry.publish_wanted(session, wanted)
        session.flush()
        jobs.refresh_build(session, build)
    return [job.id for key, job in rows.items() if key not in usable and job.state == JobState.QUEUED]


def _usable(session: Session, planned: Plan) -> dict[str, Job]:
    # Locked, so that none of them ends between this look and the commit: a new job that waits
    # for one would miss its end.
    found = session.scalars(
        select(Job)
        .where(Job.key.in_(planned.jobs), Job.state.in_(_USABLE))
        .order_by(Job.id)
        .with_for_update()
    ).all()
    for job in found:
        job.cancel_requested = False
    return {job.key: job for job in found}


def _reuse(job: Job) -> Reuse:
    return Reuse.CACHED if job.state == JobState.SUCCEEDED else Reuse.JOINED


def _create(
    session: Session,
    build: Build,
    planned: Sequence[PlannedJob],
    usable: dict[str, Job],
    attempts: dict[str, int],
) -> dict[str, Job]:
    rows: dict[str, Job] = {}
    for job in planned:
        needs = [i.job for i in job.inputs.values() if i.job is not None]
        missing = [n for n in needs if n.key in rows or usable[n.key].state != JobState.SUCCEEDED]
        attempt = attempts.get(job.key, 1)
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
            needs=len(missing),
            attempt=attempt,
            first_attempt=attempt,
            created_at=now(),
        )
    session.add_all(rows.values())
    session.flush()
    _connect(session, planned, rows | usable)
    for row in rows.values():
        jobs.record(session, row, JobState(row.state), build=build.id)
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
