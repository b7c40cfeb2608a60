"""How jobs move, and what follows: their dependents', and the builds' states.

Every change of a job's state is a compare-and-set in one place, ``move``; zero rows mean that
somebody else was there first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import GenerativeSelect, Row, bindparam, func, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from farm.database.base import Base, Instant, now
from farm.database.tables import Build, BuildJob, Event, Job, JobInput, Wanted
from farm.errors import InputFailed, code_of
from farm.specs.states import BUILD_ENDED, BuildState, JobState, build_state, check_transition
from farm.turns import Bell

S = TypeVar("S", bound=GenerativeSelect)

_FOLLOWS = code_of(InputFailed)


def locked_rows(statement: S, *, skip: bool = False) -> S:
    """Lock the rows on Postgres; SQLite has one writer, and ignores it."""
    return statement.with_for_update(skip_locked=skip, key_share=True)


# The statements of every job are made once: making them would take longer than running them.
_RECORD = insert(Base.metadata.tables[Event.__tablename__])
_EDGES = (
    select(JobInput.job_id, func.count())
    .join(Job, Job.id == JobInput.job_id)
    .where(JobInput.needs_id == bindparam("job_id"), Job.state == JobState.WAITING)
    .group_by(JobInput.job_id)
    .order_by(JobInput.job_id)
)
_COUNT_DOWN = (
    update(Job)
    .where(Job.id == bindparam("id_"), Job.state == JobState.WAITING)
    .values(needs=Job.needs - bindparam("count"))
    .returning(Job.needs)
)
# Not "in the live ones": SQLite would go through all that are live.
_BUILDS = locked_rows(
    select(Build.id, Build.state, Build.started_at)
    .where(
        Build.id.in_(
            select(BuildJob.build_id).where(
                BuildJob.job_id.in_(bindparam("job_ids", expanding=True))
            )
        ),
        Build.state.not_in(BUILD_ENDED),
    )
    .order_by(Build.id)
)
_QUEUED_BUILDS = locked_rows(
    select(Build.id, Build.state, Build.started_at)
    .where(
        Build.id.in_(select(BuildJob.build_id).where(BuildJob.job_id == bindparam("job_id"))),
        Build.state.not_in(frozenset(BuildState) - {BuildState.QUEUED}),
    )
    .order_by(Build.id)
)
_STATES = (
    select(Job.state)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(BuildJob.build_id == bindparam("build_id"))
    .distinct()
)
_SET_BUILD = (
    update(Build)
    .where(Build.id == bindparam("build_id"))
    .values(
        state=bindparam("new"),
        started_at=bindparam("new_started_at", type_=Instant()),
        finished_at=bindparam("new_finished_at", type_=Instant()),
    )
)
_ENGINES_DONE = select(func.count()).where(
    Wanted.build_id == bindparam("build_id"), Wanted.engine_id.is_not(None)
)


def record(session: Session, job: Any, state: JobState, **data: Any) -> None:
    """Write down a change of state.

    Parameters:
        job: a Job, or a row with its id, kind, title and attempt.
    """
    values = {
        "job_id": job.id,
        "kind": "job",
        "state": state,
        "data": about(job, **data),
        "at": now(),
    }
    session.connection().execute(_RECORD, values)


def about(job: Any, **data: Any) -> dict[str, Any]:
    """What an event says of a job."""
    return {"kind": job.kind, "title": job.title, "attempt": job.attempt} | data


def move(
    session: Session,
    job_id: int,
    old: JobState,
    new: JobState,
    *,
    of_attempt: int | None = None,
    **values: Any,
) -> Row[*tuple[Any, ...]] | None:
    """The one place where a job's state changes: a compare-and-set.

    Returns:
        The job's columns as they are now, without the large ones that its stage made; None when the
        job isn't in the old state, or is at another attempt.
    """
    check_transition(old, new)
    # The unit of work's own changes come first, as before a query of its.
    session.flush()
    found = session.connection().execute(
        _move_statement(tuple(sorted(values)), of_attempt is not None),
        {f"new_{name}": value for name, value in values.items()}
        | {"job_id": job_id, "old": old, "new": new, "of_attempt": of_attempt},
    )
    return found.one_or_none()


@cache
def _move_statement(names: tuple[str, ...], is_of_attempt: bool) -> ReturningUpdate[Any]:
    statement = update(Job).where(Job.id == bindparam("job_id"), Job.state == bindparam("old"))
    if is_of_attempt:
        statement = statement.where(Job.attempt == bindparam("of_attempt"))
    columns = Job.__table__.c
    changes = {name: bindparam(f"new_{name}", type_=columns[name].type) for name in names}
    return statement.values(state=bindparam("new"), **changes).returning(
        *(column for column in columns if column.name not in ("outputs", "facts"))
    )


def release_dependents(session: Session, job_id: int) -> list[Bell]:
    """Count the inputs down of the jobs that wait for this one; queue those that have them all.

    Returns:
        What is to be rung for after the commit.
    """
    ready = []
    edges = session.connection().execute(_EDGES, {"job_id": job_id}).all()
    for dependent_id, count in edges:
        left = session.connection().scalar(_COUNT_DOWN, {"id_": dependent_id, "count": count})
        if left != 0:
            continue
        job = move(session, dependent_id, JobState.WAITING, JobState.QUEUED, rung_at=now())
        if job is not None:
            record(session, job, JobState.QUEUED)
            ready.append(Bell.of(job))
    return ready


def fail_dependents(session: Session, job_id: int) -> list[int]:
    """Fail, all the way down, the jobs that wait for this one."""
    failed: list[int] = []
    causes = [session.get_one(Job, job_id, populate_existing=True)]
    while causes:
        cause = causes.pop()
        origin = cause.error or {}
        error = {
            "code": _FOLLOWS,
            "detail": origin["detail"]
            if origin.get("code") == _FOLLOWS
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
            end: dict[str, Any] = {"error": error, "finished_at": now()}
            if move(session, job.id, JobState.WAITING, JobState.FAILED, **end):
                session.refresh(job)
                record(session, job, JobState.FAILED, error=error)
                failed.append(job.id)
                causes.append(job)
    return failed


def start_builds(session: Session, job_id: int) -> None:
    """Let the builds that want this job know that it has started."""
    session.flush()
    for build in session.connection().execute(_QUEUED_BUILDS, {"job_id": job_id}).all():
        set_build_state(session, build, BuildState.RUNNING)


def locked_builds(session: Session, job_ids: Sequence[int]) -> Sequence[Any]:
    """The live builds that want these jobs, locked until the end of the unit of work."""
    session.flush()
    return session.connection().execute(_BUILDS, {"job_ids": list(job_ids)}).all()


def refresh_builds(session: Session, builds: Iterable[Any]) -> None:
    """Let the states of locked builds follow from their jobs' states."""
    for build in builds:
        states = session.connection().scalars(_STATES, {"build_id": build.id})
        set_build_state(session, build, build_state(map(JobState, states)))


def set_build_state(session: Session, build: Any, state: BuildState) -> None:
    """Move a build to a state, with its times and its event; nothing when it is there already.

    Parameters:
        build: a row with its id, state and started_at, or a Build, which is to be refreshed.
    """
    if state == build.state:
        return
    starts = state != BuildState.QUEUED and build.started_at is None
    at = {
        "new_started_at": now() if starts else build.started_at,
        "new_finished_at": now() if state in BUILD_ENDED else None,
    }
    session.connection().execute(_SET_BUILD, {"build_id": build.id, "new": state} | at)
    done = session.connection().scalar(_ENGINES_DONE, {"build_id": build.id})
    values = {
        "build_id": build.id,
        "kind": "build",
        "state": state,
        "data": {"engines_done": done},
        "at": now(),
    }
    session.connection().execute(_RECORD, values)
