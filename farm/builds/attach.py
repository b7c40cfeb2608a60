"""Attaches jobs to a build: existing ones with the same key, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Insert, bindparam, insert, select, update
from sqlalchemy.orm import Session

from farm.builds.loaded import LoadedBuild
from farm.database.base import Base, now
from farm.database.job_rows import JobRow, select_job_rows
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
from farm.queue import build_states, counted, transitions
from farm.queue.turns import Bell, Turns
from farm.registry import interfaces, provenance, publish
from farm.specs.states import BUILD_ENDED, LIVE, BuildState, JobState, Reuse, build_state
from farm.store import artifacts
from farm.tracing import spans

_JOBS = (
    select_job_rows()
    .where(Job.key.in_(bindparam("keys", expanding=True)), IS_USABLE)
    .order_by(Job.id)
)
# Locked, so that none of them ends between this query and the commit: a new job that waits for one
# would miss its end. Not their keys: an engine being published refers to them.
_LOCKED_JOBS = _JOBS.with_for_update(key_share=True)


_INSERTS: dict[type[Base], Insert] = {
    row: insert(Base.metadata.tables[row.__tablename__])
    for row in (Build, BuildJob, Event, JobInput, Wanted)
}


_JOB_INSERT = insert(Base.metadata.tables[Job.__tablename__]).returning(
    Job.id, sort_by_parameter_order=True
)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    build_id: str
    attached: LoadedBuild | None  #: None if nothing was done: the build existed before
    ready: Sequence[Bell] = ()  #: to ring after the commit
    warnings: Sequence[str] = ()  #: for whoever asked for it

    @property
    def is_live(self) -> bool:
        """Whether it has been given something to do."""
        return self.attached is not None and self.attached.build.state not in BUILD_ENDED

    @property
    def has_finished_jobs(self) -> bool:
        """Whether it takes results that were there."""
        jobs = self.attached.jobs if self.attached is not None else ()
        return any(job.state == JobState.SUCCEEDED for job, _ in jobs)

    @property
    def new_queues(self) -> set[str]:
        """The queues in which it has new jobs."""
        jobs = self.attached.jobs if self.attached is not None else ()
        return {job.queue for job, how in jobs if how is Reuse.RAN and job.state in LIVE}


def insert_rows(session: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows without the unit of work's bookkeeping, which would take half of a submission's time."""
    session.connection().execute(_INSERTS[table], list(rows))


def columns(row: Base) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a build had before it was replanned."""

    attempts: Mapping[str, int] = field(default_factory=dict)  #: key → its last attempt
    reuse: Mapping[int, Reuse] = field(default_factory=dict)  #: job → how the build got it
    places: Mapping[str, int] = field(default_factory=dict)  #: queue → `farm.queue.turns`


def attach_jobs(
    session: Session,
    build: Build,
    model: str,
    version: int,
    planned: Plan,
    before: Before | None = None,
) -> Submitted:
    """Give a build its jobs: reuse the usable ones with the same key, create the others."""
    before = before or Before()
    parameters.keep(session, planned.shared)
    usable = _usable(session, planned)
    places = Turns(session, build, before.places)
    ready = places.raise_priority(usable.values())
    created = _create(session, build, planned, usable, places, before.attempts)
    rows = usable | created
    reuse = {key: before.reuse.get(job.id) or reuse_of(job) for key, job in usable.items()}
    jobs = [(rows[key], reuse.get(key, Reuse.RAN)) for key in planned.jobs if key in rows]
    _link(session, build, jobs)
    counted.wanted(session, ((job.kind, how) for job, how in jobs if job.id not in before.reuse))
    wanted = _wanted(session, build, planned, rows)
    state = build_state(JobState(job.state) for job in rows.values())
    if state != build.state:
        build_states.set_build_state(session, build, state)
        build = session.get_one(Build, build.id, populate_existing=True)
    return Submitted(
        build_id=build.id,
        attached=LoadedBuild(
            build=build,
            model=model,
            version=version,
            jobs=jobs,
            wanted=wanted,
            doubts=provenance.doubts(session, wanted),
            held_back=interfaces.held_back(session, build.version_id),
        ),
        ready=ready + [Bell.of(job) for job in created.values() if job.state == JobState.QUEUED],
    )


def _link(session: Session, build: Build, jobs: Sequence[tuple[JobRow, Reuse]]) -> None:
    links = [
        {"build_id": build.id, "job_id": job.id, "reuse": reuse, "position": position}
        for position, (job, reuse) in enumerate(jobs)
    ]
    insert_rows(session, BuildJob, links)


def _wanted(
    session: Session, build: Build, planned: Plan, rows: Mapping[str, JobRow]
) -> Sequence[Wanted]:
    """Keep the engines that a build wants; publish those whose jobs have already succeeded."""
    wanted = [
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
    insert_rows(session, Wanted, map(columns, wanted))
    done = {job.id for job in rows.values() if job.state == JobState.SUCCEEDED}
    if any({want.build_job_id, want.measure_job_id} <= done for want in wanted):
        return publish.publish_build(session, build.id)
    return wanted


def usable_jobs(session: Session, planned: Plan, *, locked: bool = False) -> dict[str, JobRow]:
    """The jobs of a plan that are there: on their way, or succeeded."""
    statement = _LOCKED_JOBS if locked else _JOBS
    rows = session.connection().execute(statement, {"keys": list(planned.jobs)})
    return {row.key: JobRow.of(row._mapping) for row in rows}


def _usable(session: Session, planned: Plan) -> dict[str, JobRow]:
    found = usable_jobs(session, planned, locked=True)
    ending = [job.id for job in found.values() if job.cancel_requested]
    if ending:
        session.execute(update(Job).where(Job.id.in_(ending)).values(cancel_requested=False))
    return found


def reuse_of(job: JobRow) -> Reuse:
    return Reuse.CACHED if job.state == JobState.SUCCEEDED else Reuse.JOINED


def _create(
    session: Session,
    build: Build,
    planned: Plan,
    usable: Mapping[str, JobRow],
    places: Turns,
    attempts: Mapping[str, int],
) -> dict[str, JobRow]:
    needed = needed_keys(planned, usable)
    new = [job for key, job in planned.jobs.items() if key in needed and key not in usable]
    if not new:
        return {}
    done = {key for key, job in usable.items() if job.state == JobState.SUCCEEDED}
    size = artifacts.size(session, build.request["source"]["digest"])
    inserted = []
    for job in new:
        needs = sum(given.key not in done for given in made_inputs(job).values())
        place, attempt = places.place(job.queue), attempts.get(job.key, 0) + 1
        inserted.append(_columns_of(job, build, size, place, needs, attempt))
    ids = session.connection().execute(_JOB_INSERT, inserted).scalars()
    created = {
        row["key"]: JobRow.of({"id": job_id} | row)
        for row, job_id in zip(inserted, ids, strict=True)
    }
    _connect(session, new, {**usable, **created})
    for row in created.values():
        transitions.record(session, row, JobState(row.state), build=build.id)
    return created


def needed_keys(planned: Plan, usable: Mapping[str, JobRow]) -> set[str]:
    """The keys of the jobs that a build needs: what has succeeded needs its inputs no more.

    So what was deleted between a source and its engines is made again only for what is missing.
    """
    needed: set[str] = set()
    ahead = [job.key for engine in planned.engines for job in (engine.build, engine.measure)]
    while ahead:
        key = ahead.pop()
        if key not in needed:
            needed.add(key)
            job = usable.get(key)
            if job is None or job.state != JobState.SUCCEEDED:
                ahead += [given.key for given in made_inputs(planned.jobs[key]).values()]
    return needed


def _columns_of(
    job: PlannedJob, build: Build, size: int | None, place: int, needs: int, attempt: int
) -> dict[str, Any]:
    """A new job's columns.

    Parameters:
        size: the source's, in bytes.
        needs: the number of its inputs that have yet to be made.
    """
    at = now()
    return {
        "key": job.key,
        "kind": job.kind,
        "title": job.title,
        "state": JobState.WAITING if needs else JobState.QUEUED,
        "recipe": job.recipe.document,
        "runtime": job.target.runtime if job.target else None,
        "target": str(job.target) if job.target else None,
        "precision": job.precision,
        "source_bytes": size,
        "queue": job.queue,
        "priority": build.priority,
        "client": build.client,
        "place": place,
        "needs": needs,
        "attempt": attempt,
        "first_attempt": attempt,
        "cancel_requested": False,
        "queued_at": None if needs else at,
        "rung_at": None if needs else at,
        "trace": spans.of_reserved(build.trace),
        "created_at": at,
    }


def _connect(session: Session, planned: Sequence[PlannedJob], rows: Mapping[str, JobRow]) -> None:
    edges: list[dict[str, Any]] = [
        {
            "job_id": rows[job.key].id,
            "role": role,
            "needs_id": rows[given.key].id,
            "output": given.role,
        }
        for job in planned
        for role, given in made_inputs(job).items()
    ]
    if edges:
        insert_rows(session, JobInput, edges)


def made_inputs(job: PlannedJob) -> dict[str, Made]:
    """A job's inputs that are made by other jobs."""
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
