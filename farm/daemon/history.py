"""Forgets what of history is older than the farm keeps it: many short units of work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.session import Database
from farm.keeping import history
from farm.schemas.storage import HistoryReport
from farm.specs.counted import counted
from farm.specs.history import KeptHistory
from farm.trust import audit
from farm.trust.callers import THE_FARM, Caller

T = TypeVar("T", int, str)

_PAST_EVERY_JOB = 2**62


def forget(
    db: Database, kept: KeptHistory, *, dry_run: bool = False, by: Caller = THE_FARM
) -> HistoryReport:
    """Delete what is older than it is kept, or say how much of it there is.

    Several processes may do it at once: each leaves alone what another is at. What a killed one leaves, the
    next one takes.

    Parameters:
        by: the caller, for the audit.

    Raises:
        DatabaseUnavailable
    """
    if dry_run:
        with db.read() as session:
            return HistoryReport(**history.due(session, kept, now()))
    done = HistoryReport(
        events=_of_events(db, kept.events_days, history.events),
        logs=_of_events(db, kept.logs_days, history.logs),
        samples=_samples(db, kept.samples_days),
        builds=_builds(db, kept.builds_days),
        jobs=_jobs(db, kept.builds_days),
    )
    gone = {name: number for name, number in done.model_dump().items() if number}
    if gone:
        with db.write() as session:
            told = ", ".join(counted(number, name[:-1]) for name, number in gone.items())
            audit.record(session, by, "forget", told, **gone)
    return done


def _of_events(db: Database, days: float | None, delete: Callable[[Session, int], int]) -> int:
    if days is None:
        return 0
    with db.read() as session:
        first = history.boundary(session, _before(days))
    return _until_none(db, lambda session: delete(session, first))


def _samples(db: Database, days: float | None) -> int:
    if days is None:
        return 0
    before = _before(days)
    return _until_none(db, lambda session: history.samples(session, before))


def _builds(db: Database, days: float | None) -> int:
    if days is None:
        return 0
    before = _before(days)
    return _along(db, "", lambda session, last: history.builds(session, before, last))


def _jobs(db: Database, days: float | None) -> int:
    if days is None:
        return 0
    before, total = _before(days), 0
    # Each round frees those that only the jobs of the last one needed.
    while done := _along(
        db, _PAST_EVERY_JOB, lambda session, last: history.jobs(session, before, last)
    ):
        total += done
    return total


def _until_none(db: Database, delete: Callable[[Session], int]) -> int:
    total = 0
    while True:
        with db.write() as session:
            done = delete(session)
        total += done
        if done < history.BATCH:
            return total


def _along(db: Database, start: T, delete: Callable[[Session, T], tuple[T | None, int]]) -> int:
    """Delete batch after batch, each after the last row that the one before looked at."""
    total, last = 0, start
    while True:
        with db.write() as session:
            seen, done = delete(session, last)
        total += done
        if seen is None:
            return total
        last = seen


def _before(days: float) -> datetime:
    return now() - timedelta(days=days)
