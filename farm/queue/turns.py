"""Fair queuing: a job's place in its queue follows its priority, then its client's turn.

In each queue a client's builds get consecutive turns, and clients alternate: between any two of a client's
thousand builds there is room for another client's, whose first comes right after the work in progress.
Within a turn, the older job comes first.

Source: Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from sqlalchemy import ColumnElement, bindparam, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from farm.database.base import Instant, now
from farm.database.job_rows import JobRow
from farm.database.tables import IS_IN_LINE, IS_QUEUED, Build, BuildJob, Job
from farm.specs.states import JobState

_PRIORITIES = 10
_TURNS = 2**40  #: more than a farm ever uses
_OTHER = aliased(Job)
_NOT_STARTED = (JobState.WAITING, JobState.QUEUED)


class Bell(NamedTuple):
    """A message's content: announces a queued job."""

    id: int
    attempt: int
    queue: str
    priority: int
    title: str
    key: str
    trace: Mapping[str, str] | None = None

    @classmethod
    def of(cls, job: Any) -> Self:
        """The bell for a Job, or for a row with these columns."""
        return cls(*(getattr(job, name) for name in cls._fields))


# Built once, like all statements of a submission.
_NEWEST = select(
    select(func.max(Job.place))
    .where(
        Job.queue == bindparam("queue"),
        Job.client == bindparam("client"),
        Job.place.between(bindparam("first"), bindparam("last")),
        IS_IN_LINE,
    )
    .scalar_subquery(),
    select(Job.place)
    .where(
        Job.queue == bindparam("queue"),
        Job.priority == bindparam("priority"),
        Job.started_at.is_not(None),
    )
    .order_by(Job.started_at.desc())
    .limit(1)
    .scalar_subquery(),
)


class Turns:
    """A build's places: one per queue in which it has work, assigned on first use.

    Parameters:
        kept: queue → the build's place there before it was replanned.
    """

    def __init__(
        self, session: Session, build: Build, kept: Mapping[str, int] | None = None
    ) -> None:
        self._session = session
        self._build = build
        self._places = dict(kept or {})

    def place(self, queue: str) -> int:
        """The place after the client's newest here, or after the work in progress. Lower is earlier."""
        if queue not in self._places:
            build = self._build
            self._places[queue] = next_place(self._session, queue, build.client, build.priority)
        return self._places[queue]

    def raise_priority(self, joined: Iterable[JobRow]) -> list[Bell]:
        """Move joined jobs that haven't started up to the place of the build that joins them.

        Returns:
            The bells to ring again after the commit: the earlier messages have the old priority.
        """
        waiting = [job for job in joined if job.state in _NOT_STARTED]
        bells: list[Bell] = []
        for queue in sorted({job.queue for job in waiting}):
            early = self.place(queue)
            late = [job.id for job in waiting if job.queue == queue and job.place > early]
            if late:
                bells += self._raise(late, early)
        return bells

    def _raise(self, late: list[int], early: int) -> Iterable[Bell]:
        moved = self._session.connection().execute(
            update(Job)
            .where(Job.id.in_(late), Job.state.in_(_NOT_STARTED))
            .values(priority=self._build.priority, place=early)
            .returning(Job.state, *(getattr(Job, name) for name in Bell._fields))
        )
        return [Bell.of(job) for job in moved if job.state == JobState.QUEUED]


def next_place(session: Session, queue: str, client: str, priority: int) -> int:
    """The place in a queue after the client's newest of a priority, or after the work in progress."""
    first = (_PRIORITIES - 1 - priority) * _TURNS
    of = {"queue": queue, "client": client, "priority": priority}
    band = {"first": first, "last": first + _TURNS - 1}
    own, started = session.connection().execute(_NEWEST, of | band).one()
    return max(own or first, started or first) + 1


def places(session: Session, build: Build) -> dict[str, int]:
    """The places of the jobs that a build created itself: queue → place."""
    rows = session.execute(
        select(Job.queue, func.min(Job.place))
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(
            BuildJob.build_id == build.id,
            Job.client == build.client,
            Job.priority == build.priority,
        )
        .group_by(Job.queue)
    )
    return dict(rows.tuples().all())


def may_start() -> ColumnElement[bool]:
    """The condition that a job isn't held back now; ``due`` makes its parameters."""
    return or_(
        Job.not_before.is_(None),
        Job.not_before <= bindparam("at", type_=Instant()),
        # Nothing is held back for that long: the clock has been set back.
        Job.not_before > bindparam("too_far", type_=Instant()),
    )


def due(longest_s: float) -> dict[str, datetime]:
    """The parameters of ``may_start``, as of now."""
    return {"at": now(), "too_far": now() + timedelta(seconds=longest_s)}


#: The first in line, in the queue of job ``job_id``.
IN_LINE = (
    select(Job.id)
    .where(
        Job.queue == select(_OTHER.queue).where(_OTHER.id == bindparam("job_id")).scalar_subquery(),
        IS_QUEUED,
        may_start(),
    )
    .order_by(Job.place, Job.id)
    .limit(1)
)
#: The first that isn't locked, as others may be claiming it.
#: On Postgres, whoever waited for one would meanwhile hold locks on those that have left the line.
LINE = IN_LINE.with_for_update(skip_locked=True, key_share=True)
