"""A build gets its jobs: those of the same key that are there, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Insert, bindparam, insert, select, update
from sqlalchemy.orm import Session

from farm.database.base import Base, now
from farm.database.tables import (
    IS_USABLE,
    Build,
    BuildJob,
    Event,
    Job,
    JobInput,
    Wanted,
)
from farm.errors import NotFound
from farm.planning import parameters
from farm.planning.jobs import PlannedJob
from farm.planning.plan import Plan
from farm.planning.recipe import Made
from farm.queue import build_states, transitions
from farm.queue.turns import Bell, Turns
from farm.registry import provenance, publish
from farm.specs.states import BuildState, JobState, Reuse, build_state

_LARGE = {"recipe", "outputs"}


# Locked, so that none of them ends between this look and the commit: a new job that waits for one
# would miss its end.
_JOBS = (
    select(*(column for column in Job.__table__.c if column.name not in _LARGE))
    .where(Job.key.in_(bindparam("keys", expanding=True)), IS_USABLE)
    .order_by(Job.id)
    # Not their keys, which an engine that is being published refers to.
    .with_for_update(key_share=True)
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


def insert_rows(session: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows without the unit of work's bookkeeping, which would be half of a submission's time."""
    session.connection().execute(_INSERTS[table], list(rows))


def columns(row: Base) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a build had before it was planned anew."""

    attempts: Mapping[str, int] = field(default_factory=dict)  #: key → its last attempt
    reuse: Mapping[int, Reuse] = field(default_factory=dict)  #: job → how the build came by it
    places: Mapping[str, int] = field(default_factory=dict)  #: queue → `farm.queue.turns`


def attach_jobs(
    session: Session,
    build: Build,
    model: str,
    version: int,
    planned: Plan,
    before: Before | None = None,
) -> Submitted:
    """Give a build its jobs: take those of the same key that are usable, create the others."""
    before = before or Before()
    parameters.keep(session, planned.shared)
    usable = _usable(session, planned)
    places = Turns(session, build, before.places)
    ready = places.raise_priority(usable.values())
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
    insert_rows(session, BuildJob, links)
    insert_rows(session, Wanted, map(columns, wanted))
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
        needs = [given.key for given in _made(job).values()]
        missing = [key for key in needs if key in rows or usable[key].state != JobState.SUCCEEDED]
        attempt = attempts.get(job.key, 0) + 1
        rows[job.key] = Job(
            key=job.key,
            kind=job.kind,
            title=job.title,
            state=JobState.WAITING if missing else JobState.QUEUED,
            recipe=job.recipe.document,
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
    made = session.connection().execute(_JOB_INSERT, list(map(columns, rows.values())))
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
    insert_rows(session, Event, events)
    return rows


def _connect(session: Session, planned: Sequence[PlannedJob], rows: dict[str, Job]) -> None:
    edges: list[dict[str, Any]] = [
        {
            "job_id": rows[job.key].id,
            "role": role,
            "needs_id": rows[given.key].id,
            "output": given.role,
        }
        for job in planned
        for role, given in _made(job).items()
    ]
    if edges:
        session.execute(insert(JobInput), edges)


def _made(job: PlannedJob) -> dict[str, Made]:
    """Of a job's inputs, those that other jobs make."""
    return {role: one for role, one in job.recipe.inputs.items() if isinstance(one, Made)}


def state(session: Session, build_id: str) -> BuildState:
    """A build's state.

    Raises:
        NotFound
    """
    found = session.scalar(select(Build.state).where(Build.id == build_id))
    if found is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return BuildState(found)
