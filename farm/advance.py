"""How jobs move, and what follows: their dependents', and the builds' states.

Every change of a job's state is a compare-and-set in one place, ``move``; zero rows mean that
somebody else was there first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from farm.db import now
from farm.models import Build, BuildJob, Event, Job, JobInput, Wanted
from farm.states import BUILD_ENDED, BUILD_LIVE, BuildState, JobState, build_state, check_transition

S = TypeVar("S", bound=Select[Any])


def record(session: Session, job: Job, state: JobState, **data: Any) -> None:
    """Write down a change of state."""
    session.add(event(job, state, **data))


def event(job: Job, state: JobState, **data: Any) -> Event:
    """A change of a job's state, to be written down."""
    data = {"kind": job.kind, "title": job.title, "attempt": job.attempt} | data
    return Event(job_id=job.id, kind="job", state=state, data=data, at=now())


def move(
    session: Session,
    job_id: int,
    old: JobState,
    new: JobState,
    *,
    attempt: int | None = None,
    values: Mapping[str, Any] | None = None,
    **more: Any,
) -> bool:
    """The one place where a job's state changes: a compare-and-set."""
    check_transition(old, new)
    statement = update(Job).where(Job.id == job_id, Job.state == old)
    if attempt is not None:
        statement = statement.where(Job.attempt == attempt)
    result = session.execute(
        statement.values(state=new, **(dict(values or {}) | more)).returning(Job.id)
    )
    return result.scalar() is not None


def release_dependents(session: Session, job_id: int) -> list[int]:
    """Count the inputs down of the jobs that wait for this one; queue those that have them all."""
    edges = dict(
        session.execute(
            select(JobInput.job_id, func.count())
            .join(Job, Job.id == JobInput.job_id)
            .where(JobInput.needs_id == job_id, Job.state == JobState.WAITING)
            .group_by(JobInput.job_id)
            .order_by(JobInput.job_id)
        )
        .tuples()
        .all()
    )
    ready = []
    for dependent_id, count in edges.items():
        left = session.scalar(
            update(Job)
            .where(Job.id == dependent_id, Job.state == JobState.WAITING)
            .values(needs=Job.needs - count)
            .returning(Job.needs)
        )
        if left == 0 and move(session, dependent_id, JobState.WAITING, JobState.QUEUED):
            job = session.get_one(Job, dependent_id, populate_existing=True)
            record(session, job, JobState.QUEUED)
            ready.append(dependent_id)
    return ready


def fail_dependents(session: Session, job_id: int) -> list[int]:
    """Fail, all the way down, the jobs that wait for this one."""
    failed: list[int] = []
    causes = [session.get_one(Job, job_id, populate_existing=True)]
    while causes:
        cause = causes.pop()
        origin = cause.error or {}
        error = {
            "code": "input-failed",
            "detail": origin["detail"]
            if origin.get("code") == "input-failed"
            else f"{cause.title} failed: {origin.get('detail')}",
            "hint": origin.get("hint"),
        }
        waiting = session.scalars(
            select(Job)
            .join(JobInput, JobInput.job_id == Job.id)
            .where(JobInput.needs_id == cause.id, Job.state == JobState.WAITING)
            .order_by(Job.id)
        ).unique()
        for job in waiting.all():
            values = {"error": error, "finished_at": now()}
            if move(session, job.id, JobState.WAITING, JobState.FAILED, values=values):
                session.refresh(job)
                record(session, job, JobState.FAILED, error=error)
                failed.append(job.id)
                causes.append(job)
    return failed


def refresh_builds(session: Session, job_ids: Sequence[int]) -> None:
    """Let the states of the builds that want these jobs follow from their jobs' states."""
    builds = session.scalars(
        locked_rows(
            select(Build)
            .where(
                Build.id.in_(select(BuildJob.build_id).where(BuildJob.job_id.in_(job_ids))),
                Build.state.in_(BUILD_LIVE),
            )
            .order_by(Build.id)
        )
    ).all()
    for build in builds:
        refresh_build(session, build)


def refresh_build(session: Session, build: Build) -> None:
    """Let a live build's state follow from its jobs' states."""
    states = session.scalars(
        select(Job.state)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build.id)
    )
    set_build_state(session, build, build_state(map(JobState, states)))


def set_build_state(session: Session, build: Build, state: BuildState) -> None:
    """Move a build to a state, with its times and its event; nothing when it is there already."""
    if state == build.state:
        return
    build.state = state
    if state != BuildState.QUEUED and build.started_at is None:
        build.started_at = now()
    if state in BUILD_ENDED:
        build.finished_at = now()
    done = session.scalar(
        select(func.count()).where(Wanted.build_id == build.id, Wanted.engine_id.is_not(None))
    )
    session.add(Event(build_id=build.id, kind="build", state=state, data={"engines_done": done}))


def locked_rows(statement: S, *, skip: bool = False) -> S:
    """Lock the rows on Postgres; SQLite has one writer, and ignores it."""
    return statement.with_for_update(skip_locked=skip, key_share=True)
