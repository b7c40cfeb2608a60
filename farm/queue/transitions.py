"""Job state transitions, and their effect on dependent jobs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    GenerativeSelect,
    Row,
    Update,
    bindparam,
    case,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from farm.database import noted
from farm.database.base import now
from farm.database.tables import Job, JobInput
from farm.errors import InputFailed, code_of
from farm.queue import counted, turns
from farm.queue.turns import Bell
from farm.specs.states import JobState, check_transition

S = TypeVar("S", bound=GenerativeSelect)


_FOLLOWS = code_of(InputFailed)


def locked_rows(statement: S, *, skip: bool = False) -> S:
    """Lock the rows on Postgres; SQLite has a single writer and ignores it."""
    return statement.with_for_update(skip_locked=skip, key_share=True)


def record(session: Session, job: Any, state: JobState, **data: Any) -> None:
    """Record a state change as an event.

    Parameters:
        job: a Job, or a row with its id, kind, title and attempt.
    """
    noted.note(session, kind="job", job_id=job.id, state=state, data=about(job, **data))


def about(job: Any, **data: Any) -> dict[str, Any]:
    """An event's data about a job."""
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
    """Change a job's state by compare-and-set. Together with ``release_dependents``, which counts down by
    the same means, the only place where a job's state changes.

    Returns:
        What is told of a job that moves (``_TOLD``), and of one that starts its recipe; None if the job isn't
        in the old state or is at another attempt.
    """
    check_transition(old, new)
    if new is JobState.QUEUED:
        values["queued_at"] = now()
    statement = _move_statement(
        tuple(sorted(values)), of_attempt is not None, new is JobState.RUNNING
    )
    return _moved(
        session, statement, old, new, values, {"job_id": job_id, "of_attempt": of_attempt}
    )


def start_first(
    session: Session, job_id: int, *, longest_s: float, **values: Any
) -> Row[*tuple[Any, ...]] | None:
    """Move the first job in line, in the queue where this job is or was, to running: as ``move`` does.

    A message announces work in a queue: the next job is chosen when a worker is free, not when the
    message is sent.

    Parameters:
        longest_s: the longest time for which a job is held back.
    """
    check_transition(JobState.QUEUED, JobState.RUNNING)
    given = {"job_id": job_id} | turns.due(longest_s)
    statement = _start_statement(tuple(sorted(values)))
    return _moved(session, statement, JobState.QUEUED, JobState.RUNNING, values, given)


def _moved(
    session: Session,
    statement: ReturningUpdate[Any],
    old: JobState,
    new: JobState,
    values: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Row[*tuple[Any, ...]] | None:
    # Flush the unit of work's own changes first, as before a query.
    session.flush()
    parameters = {f"new_{name}": value for name, value in values.items()}
    parameters |= {"old": old, "new": new, **given}
    moved = session.connection().execute(statement, parameters).one_or_none()
    if moved is not None:
        counted.moved(session, moved, old)
    return moved


# Statements that every job uses are built once: building them takes longer than running them.
_JOB, _OTHER = Job.__table__.c, aliased(Job)
#: Each column that a statement returns costs it time.
_TOLD = [
    *(_JOB[name] for name in Bell._fields),
    *(_JOB[name] for name in ("kind", "state", "queued_at", "rung_at", "started_at")),
    *(_JOB[name] for name in ("finished_at", "error", "target", "precision", "client")),
]


@cache
def _move_statement(
    names: tuple[str, ...], is_of_attempt: bool, starts: bool
) -> ReturningUpdate[Any]:
    statement = update(Job).where(Job.id == bindparam("job_id"), Job.state == bindparam("old"))
    if is_of_attempt:
        statement = statement.where(Job.attempt == bindparam("of_attempt"))
    return _with_changes(statement, names).returning(*_TOLD, *([_JOB.recipe] if starts else ()))


@cache
def _start_statement(names: tuple[str, ...]) -> ReturningUpdate[Any]:
    first = turns.LINE.correlate(None).scalar_subquery()
    statement = update(Job).where(Job.id == first, Job.state == bindparam("old"))
    return _with_changes(statement, names).returning(*_TOLD, _JOB.recipe)


def _with_changes(statement: Update, names: tuple[str, ...]) -> Update:
    changes = {name: bindparam(f"new_{name}", type_=_JOB[name].type) for name in names}
    return statement.values(state=bindparam("new"), **changes)


def _release_statement() -> ReturningUpdate[Any]:
    check_transition(JobState.WAITING, JobState.QUEUED)
    of_this = JobInput.needs_id == bindparam("job_id")
    taken = select(func.count()).where(JobInput.job_id == Job.id, of_this)
    left = Job.needs - taken.correlate(Job).scalar_subquery()
    # Locked in order, so that two inputs of the same jobs that end at once don't deadlock.
    waiting = locked_rows(
        select(_OTHER.id)
        .where(
            _OTHER.id.in_(select(JobInput.job_id).where(of_this)),
            _OTHER.state == JobState.WAITING,
        )
        .order_by(_OTHER.id)
    )
    at = bindparam("at", type_=_JOB.queued_at.type)
    return (
        update(Job)
        .where(Job.id.in_(waiting), Job.state == JobState.WAITING)
        .values(
            needs=left,
            state=case((left == 0, JobState.QUEUED), else_=Job.state),
            queued_at=case((left == 0, at), else_=Job.queued_at),
            rung_at=case((left == 0, at), else_=Job.rung_at),
        )
        .returning(*_TOLD)
    )


_RELEASE = _release_statement()


def release_dependents(session: Session, job_id: int) -> list[Bell]:
    """Decrement the missing inputs of the jobs waiting for this one; queue those that have them all.

    Returns:
        The bells to ring after the commit.
    """
    found = session.connection().execute(_RELEASE, {"job_id": job_id, "at": now()})
    ready = sorted((job for job in found if job.state == JobState.QUEUED), key=lambda job: job.id)
    for job in ready:
        record(session, job, JobState.QUEUED)
    return [Bell.of(job) for job in ready]


def fail_dependents(session: Session, job_id: int) -> list[int]:
    """Fail the jobs waiting for this one, transitively."""
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
