"""Whose turn it is: every job has a place in the line, by priority, then by its client's turn.

A client's builds have turns in a row, so that a thousand of them leave room between each two for the
builds of another, whose first comes right after what is being worked at. Within a turn the older comes
first.

Source: Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from sqlalchemy import ColumnElement, bindparam, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from farm.db import Instant, now
from farm.models import IS_QUEUED, Build, Job
from farm.states import BUILD_LIVE, JobState

_PRIORITIES = 10
_TURNS = 2**40  #: more than a farm sees in its life
_OTHER = aliased(Job)
_NOT_STARTED = (JobState.WAITING, JobState.QUEUED)


class Bell(NamedTuple):
    """What a message says of a queued job."""

    id: int
    attempt: int
    queue: str
    priority: int
    title: str
    key: str

    @classmethod
    def of(cls, job: Any) -> Self:
        """The bell of a Job, or of a row with these columns."""
        return cls(*(getattr(job, name) for name in cls._fields))


# Made once, as all statements of a submission.
_NEWEST = select(
    select(func.max(Build.turn))
    .where(
        Build.client == bindparam("client"),
        Build.state.in_(BUILD_LIVE),
        Build.priority == bindparam("priority"),
    )
    .scalar_subquery(),
    select(Job.place)
    .where(Job.started_at.is_not(None), Job.priority == bindparam("priority"))
    .order_by(Job.started_at.desc())
    .limit(1)
    .scalar_subquery(),
)


def place(priority: int, turn: int) -> int:
    """A job's place in the line: lower comes first."""
    return (_PRIORITIES - 1 - priority) * _TURNS + turn


def take(session: Session, build: Build) -> None:
    """Give a build the turn after its client's newest one, or after what is being worked at."""
    of = {"client": build.client, "priority": build.priority}
    own, started = session.connection().execute(_NEWEST, of).one()
    build.turn = max(own or 0, (started or 0) % _TURNS) + 1
    session.connection().execute(update(Build).where(Build.id == build.id).values(turn=build.turn))


def hurry(session: Session, build: Build, joined: Iterable[Job]) -> list[Bell]:
    """Let joined jobs that haven't started come as early as the build that joins them.

    Returns:
        Those to ring for anew after the commit: their messages have the old priority.
    """
    early = place(build.priority, build.turn)
    late = [job.id for job in joined if job.state in _NOT_STARTED and job.place > early]
    if not late:
        return []
    moved = session.connection().execute(
        update(Job)
        .where(Job.id.in_(late), Job.state.in_(_NOT_STARTED))
        .values(priority=build.priority, place=early)
        .returning(Job.state, *(getattr(Job, name) for name in Bell._fields))
    )
    return [Bell.of(job) for job in moved if job.state == JobState.QUEUED]


def first_in_line(session: Session, job_id: int) -> tuple[int, int] | None:
    """The first job of the queue in which this one is, or was, and its attempt.

    A message rings for a queue's work: which job comes next is decided when a worker is free, not
    when the message was sent.
    """
    values = {"job_id": job_id, "at": now()}
    # One that somebody else is about to claim is passed by; but when there's no other, it may be a
    # submission that holds it, and then nobody else would come for it.
    for statement in (_FIRST_FREE, _FIRST):
        first = session.connection().execute(statement, values).one_or_none()
        if first is not None:
            return first.id, first.attempt
    return None


def may_start() -> ColumnElement[bool]:
    """That a job isn't to be left alone for a while after the time ``at``."""
    return or_(Job.not_before.is_(None), Job.not_before <= bindparam("at", type_=Instant()))


_IN_LINE = (
    select(Job.id, Job.attempt)
    .where(
        Job.queue == select(_OTHER.queue).where(_OTHER.id == bindparam("job_id")).scalar_subquery(),
        IS_QUEUED,
        may_start(),
    )
    .order_by(Job.place, Job.id)
    .limit(1)
)
_FIRST_FREE = _IN_LINE.with_for_update(skip_locked=True, key_share=True)
_FIRST = _IN_LINE.with_for_update(key_share=True)
