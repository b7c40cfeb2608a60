"""What of history is old enough to go, and its going: a few rows in each unit of work.

What stays, however old: what hasn't ended; a build that an engine came of, with the jobs which its provenance
names; each version's newest build; a job that a build, an engine or another job needs which stays; and the
audit. Builds keep their own events as long as they are there.

Whoever takes rows locks them first, and looks again whether something needs them: a submission that joins a
job locks it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from farm.database.base import Base
from farm.database.tables import (
    Build,
    BuildJob,
    EngineRow,
    Event,
    Job,
    JobInput,
    JobSampleRow,
    Wanted,
)
from farm.specs.history import KeptHistory
from farm.specs.states import BUILD_ENDED, ENDED

#: Rows of a unit of work: SQLite's other writers wait meanwhile.
BATCH = 500

_LOG = "log"
#: Not a build's own, which say when it ended.
_FLEETING = ("job", "phase")


def boundary(session: Session, before: datetime) -> int:
    """The first event from this time on. Events are numbered in the order of time, but for a moment."""
    least = (session.scalar(select(func.min(Event.id))) or 1) - 1
    most = (session.scalar(select(func.max(Event.id))) or 0) + 1
    while most - least > 1:
        middle = (least + most) // 2
        at = session.scalar(select(Event.at).where(Event.id >= middle).order_by(Event.id).limit(1))
        if at is not None and at < before:
            least = middle
        else:
            most = middle
    return most


def logs(session: Session, before: int) -> int:
    """Delete some of what ended jobs printed before this event; return how many pieces."""
    return _delete_events(session, _old_events(before, (_LOG,)))


def events(session: Session, before: int) -> int:
    """Delete some of the phases and changes of ended jobs before this event; return how many."""
    return _delete_events(session, _old_events(before, _FLEETING))


def samples(session: Session, before: datetime) -> int:
    """Delete some attempts' samples from before this time; return of how many attempts."""
    keys = session.execute(_old_samples(before).limit(BATCH)).tuples().all()
    for job_id, attempt in keys:
        session.execute(
            delete(JobSampleRow).where(
                JobSampleRow.job_id == job_id, JobSampleRow.attempt == attempt
            )
        )
    return len(keys)


def _old_events(before: int, kinds: Sequence[str]) -> Select[int]:
    has_ended = exists().where(Job.id == Event.job_id, Job.state.in_(ENDED))
    return (
        select(Event.id)
        .where(Event.id < before, Event.kind.in_(kinds), has_ended)
        .order_by(Event.id)
    )


def _old_samples(before: datetime) -> Select[int, int]:
    return (
        select(JobSampleRow.job_id, JobSampleRow.attempt)
        .join(Job, Job.id == JobSampleRow.job_id)
        .where(JobSampleRow.began_at < before, Job.state.in_(ENDED))
        .order_by(JobSampleRow.began_at)
    )


def _delete_events(session: Session, which: Select[int]) -> int:
    ids = session.scalars(which.limit(BATCH)).all()
    _delete(session, Event, Event.id.in_(ids))  # and with them their text
    return len(ids)


def builds(session: Session, before: datetime, after: str) -> tuple[str | None, int]:
    """Delete some builds that ended before this time.

    Parameters:
        after: the last build that was looked at.

    Returns:
        The last build looked at now, None if there are no more; and how many were deleted.
    """
    old = select(Build.id).where(*_is_old(before), Build.id > after).order_by(Build.id).limit(BATCH)
    seen = session.scalars(old.with_for_update(skip_locked=True)).all()
    if not seen:
        return None, 0
    # A query after the locks: it sees what was published until then.
    going = session.scalars(select(Build.id).where(Build.id.in_(seen), ~_is_needed())).all()
    for table in (Event, Wanted, BuildJob):
        _delete(session, table, table.build_id.in_(going))
    _delete(session, Build, Build.id.in_(going))
    return seen[-1], len(going)


def _is_old(before: datetime) -> tuple[ColumnElement[bool], ...]:
    return Build.state.in_(BUILD_ENDED), Build.finished_at < before


def _is_needed() -> ColumnElement[bool]:
    """Whether a build has an engine, or is the newest of its version."""
    newer = aliased(Build)
    has_newer = exists().where(newer.version_id == Build.version_id, newer.id > Build.id)
    return or_(exists().where(EngineRow.build_id == Build.id), ~has_newer)


def jobs(session: Session, before: datetime, last: int) -> tuple[int | None, int]:
    """Delete some jobs that ended before this time, newest first: what needs another job is newer.

    Parameters:
        last: only jobs before this one.

    Returns:
        The last job looked at now, None if there are no more; and how many were deleted.
    """
    seen = session.scalars(
        select(Job.id)
        .where(*_has_ended(before), Job.id < last, ~_is_job_needed())
        .order_by(Job.id.desc())
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    if not seen:
        return None, 0
    # A query after the locks: it sees what was submitted until then.
    going = session.scalars(select(Job.id).where(Job.id.in_(seen), ~_is_job_needed())).all()
    # What a job left in many rows goes first, in steps of its own.
    theirs = _delete_events(session, select(Event.id).where(Event.job_id.in_(going)))
    if theirs == BATCH:
        return last, 0
    _delete(session, JobInput, JobInput.job_id.in_(going))
    _delete(session, Job, Job.id.in_(going))  # and with them their samples
    return seen[-1], len(going)


def _has_ended(before: datetime) -> tuple[ColumnElement[bool], ...]:
    return Job.state.in_(ENDED), Job.finished_at < before


def _is_job_needed() -> ColumnElement[bool]:
    return or_(
        exists().where(BuildJob.job_id == Job.id),
        exists().where(JobInput.needs_id == Job.id),
        exists().where(or_(Wanted.build_job_id == Job.id, Wanted.measure_job_id == Job.id)),
        exists().where(EngineRow.build_job_id == Job.id),
        exists().where(EngineRow.measure_job_id == Job.id),
    )


def _delete(session: Session, table: type[Base], which: ColumnElement[bool]) -> None:
    gone: Any = delete(table).where(which)
    session.execute(gone.execution_options(synchronize_session=False))


def due(session: Session, kept: KeptHistory, at: datetime) -> dict[str, int]:
    """How many rows of each kind would go at this time."""
    found = {"events": 0, "logs": 0, "samples": 0, "builds": 0, "jobs": 0}
    for name, days, kinds in (
        ("events", kept.events_days, _FLEETING),
        ("logs", kept.logs_days, (_LOG,)),
    ):
        if days is not None:
            first = boundary(session, at - timedelta(days=days))
            found[name] = _count(session, _old_events(first, kinds))
    if kept.samples_days is not None:
        before = at - timedelta(days=kept.samples_days)
        found["samples"] = _count(session, _old_samples(before))
    if kept.builds_days is not None:
        before = at - timedelta(days=kept.builds_days)
        going = select(Build.id).where(*_is_old(before), ~_is_needed())
        found["builds"] = _count(session, going)
        found["jobs"] = _count(session, _jobs_without(going, before))
    return found


def _jobs_without(going: Select[str], before: datetime) -> Select[int]:
    """The jobs that nothing needs once these builds have gone."""
    staying = select(BuildJob.job_id).where(BuildJob.build_id.not_in(going))
    engines = (EngineRow.build_job_id, EngineRow.measure_job_id)
    needed = or_(
        ~and_(*_has_ended(before)),
        Job.finished_at.is_(None),
        Job.id.in_(staying),
        *(Job.id.in_(select(column)) for column in engines),
    )
    kept = select(Job.id).where(needed).cte("kept", recursive=True)
    kept = kept.union(select(JobInput.needs_id).join(kept, kept.c.id == JobInput.job_id))
    return select(Job.id).where(Job.id.not_in(select(kept.c.id)))


def _count(session: Session, which: Select[*tuple[Any, ...]]) -> int:
    rows = which.order_by(None).subquery()
    return session.scalar(select(func.count()).select_from(rows)) or 0
