"""A job by itself: the builds that use it, its attempts and phases, what it takes and makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.job_rows import JobRow
from farm.database.tables import Build, BuildJob, EngineRow, Event, Job, JobInput, Model, Version
from farm.errors import NotFound
from farm.planning.recipe import Given, Recipe
from farm.schemas.problems import Failure
from farm.specs.states import ENDED, JobState

#: Of what may be many: builds that use a job, its phases, the jobs that take what it makes.
MOST = 50
_MOST_EVENTS = 5000


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of an attempt, as its stage named it."""

    name: str
    began_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job.

    Parameters:
        end: how it ended: a job's state, or ``interrupted``; None while it is queued or runs.
        cause: why it was interrupted.
    """

    number: int
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker: str | None = None
    end: str | None = None
    cause: str | None = None
    error: Failure | None = None
    phases: Sequence[Phase] = ()


@dataclass(frozen=True, kw_only=True)
class User:
    """A build that uses a job."""

    build: str
    model: str
    version: int
    state: str
    reuse: str


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A file that a job takes: uploaded, or made by another job."""

    role: str
    digest: str | None
    job: int | None = None
    title: str | None = None
    state: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobDetail:
    row: JobRow
    users: Sequence[User]
    attempts: Sequence[Attempt]
    inputs: Sequence[Edge]
    outputs: Sequence[Edge]
    takers: Sequence[Edge] = field(default=())  #: the jobs that take what it makes
    engines: Sequence[str] = ()  #: engines that it has built or measured
    tools: Sequence[tuple[str, str]] = ()

    @property
    def has_ended(self) -> bool:
        return self.row.state in ENDED


def detail(session: Session, job_id: int) -> JobDetail:
    """Read a job.

    Raises:
        NotFound
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}", hint="`farm status BUILD` lists a build's jobs")
    recipe = Recipe.read(job.recipe)
    return JobDetail(
        row=JobRow.of({name: getattr(job, name) for name in JobRow.__slots__}),
        users=_users(session, job_id),
        attempts=attempts(session, job_id),
        inputs=_inputs(session, job_id, recipe),
        outputs=[Edge(role=role, digest=one) for role, one in (job.outputs or {}).items()],
        takers=_takers(session, job_id),
        engines=session.scalars(
            select(EngineRow.id)
            .where((EngineRow.build_job_id == job_id) | (EngineRow.measure_job_id == job_id))
            .order_by(EngineRow.id)
            .limit(MOST)
        ).all(),
        tools=sorted(recipe.tools.items()),
    )


def _users(session: Session, job_id: int) -> list[User]:
    rows = session.execute(
        select(Build.id, Model.name, Version.number, Build.state, BuildJob.reuse)
        .join(BuildJob, BuildJob.build_id == Build.id)
        .join(Version, Version.id == Build.version_id)
        .join(Model, Model.id == Version.model_id)
        .where(BuildJob.job_id == job_id)
        .order_by(Build.id.desc())
        .limit(MOST)
    )
    return [
        User(build=build, model=model, version=number, state=state, reuse=reuse)
        for build, model, number, state, reuse in rows
    ]


def _inputs(session: Session, job_id: int, recipe: Recipe) -> list[Edge]:
    rows = session.execute(
        select(JobInput.role, JobInput.output, Job.id, Job.title, Job.state, Job.outputs)
        .join(Job, Job.id == JobInput.needs_id)
        .where(JobInput.job_id == job_id)
        .order_by(JobInput.role)
    )
    given = [
        Edge(role=role, digest=one.digest)
        for role, one in recipe.inputs.items()
        if isinstance(one, Given)
    ]
    return given + [
        Edge(role=role, digest=(made or {}).get(output), job=needs, title=title, state=state)
        for role, output, needs, title, state, made in rows
    ]


def _takers(session: Session, job_id: int) -> list[Edge]:
    rows = session.execute(
        select(JobInput.output, Job.id, Job.title, Job.state)
        .join(Job, Job.id == JobInput.job_id)
        .where(JobInput.needs_id == job_id)
        .order_by(Job.id.desc())
        .limit(MOST)
    )
    return [
        Edge(role=output, digest=None, job=taker, title=title, state=state)
        for output, taker, title, state in rows
    ]


def attempts(session: Session, job_id: int) -> list[Attempt]:
    """Every attempt at a job that was queued or ran, with its phases, as its events tell."""
    events = session.execute(
        select(Event.kind, Event.state, Event.data, Event.at)
        .where(Event.job_id == job_id, Event.kind.in_(("job", "phase")))
        .order_by(Event.id)
        .limit(_MOST_EVENTS)
    )
    found: dict[int, Attempt] = {}
    number = 1
    for event in events:
        if event.kind == "phase":
            if number in found:
                found[number] = _in_phase(found[number], event.data, event.at)
            continue
        number = int(event.data.get("attempt", number))
        before = found.get(number - 1)
        if number not in found and before is not None and before.end is None:
            cause = event.data.get("cause") or "its worker went silent"
            found[number - 1] = _ended(before, event.at, "interrupted", cause=str(cause))
        found[number] = _moved(found.get(number) or Attempt(number=number), event)
    return [one for one in found.values() if one.queued_at or one.started_at or one.error]


def _in_phase(attempt: Attempt, data: Any, at: datetime) -> Attempt:
    name = str(data.get("phase"))
    if attempt.phases and attempt.phases[-1].name == name:
        return attempt
    return replace(attempt, phases=[*_closed(attempt.phases, at), Phase(name=name, began_at=at)])


def _closed(phases: Sequence[Phase], at: datetime) -> list[Phase]:
    return [replace(one, ended_at=one.ended_at or at) for one in phases]


def _ended(attempt: Attempt, at: datetime, end: str, **more: Any) -> Attempt:
    phases = _closed(attempt.phases, at)
    return replace(attempt, ended_at=at, end=end, phases=phases, **more)


def _moved(attempt: Attempt, event: Any) -> Attempt:
    if event.state == JobState.QUEUED:
        return replace(attempt, queued_at=event.at)
    if event.state == JobState.RUNNING:
        return replace(attempt, started_at=event.at, worker=event.data.get("worker"))
    if event.state in ENDED:
        error = event.data.get("error")
        told = Failure.model_validate(error) if error else None
        cause = event.data.get("cause")
        # What had succeeded may fail later: an output was damaged, or deleted.
        end = {"error": told, "cause": cause}
        return _ended(attempt, attempt.ended_at or event.at, str(event.state), **end)
    return attempt
