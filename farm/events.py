"""The stream of what happens to a build: in order, and without gaps also for a reader that resumes.

An event's number is taken before its transaction is committed. On Postgres one with a lower number may
appear after one with a higher one, and a reader that went on after the higher would miss it: so a
reader waits, some milliseconds, for the transactions that are writing events just then.
"""

from __future__ import annotations

import time

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from farm.errors import NotFound
from farm.models import BuildJob, Job
from farm.models import Event as Row
from farm.schemas import Event
from farm.states import BUILD_ENDED

_PAUSE_S = 0.005
_PATIENCE_S = 2.0  #: no transaction of the farm's takes so long
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = 'events'::regclass "
    "AND mode = 'RowExclusiveLock' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def since(session: Session, build_id: str, after: int = 0, *, limit: int = 500) -> list[Event]:
    """What happened to a build and its jobs since its submission, past the event ``after``.

    Raises:
        NotFound
    """
    first = session.scalar(select(func.min(Row.id)).where(Row.build_id == build_id))
    if first is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    jobs = select(BuildJob.job_id).where(BuildJob.build_id == build_id)
    news = (
        select(Row, Job.title)
        .outerjoin(Job, Job.id == Row.job_id)
        .where(or_(Row.build_id == build_id, Row.job_id.in_(jobs)), Row.id > max(after, first - 1))
        .order_by(Row.id)
        .limit(limit)
    )
    found = session.execute(news).all()
    if found and not _is_sqlite(session):
        last = found[-1][0].id
        if not _writers_are_done(session):
            return []
        found = session.execute(news.where(Row.id <= last)).all()
    return [
        Event(
            id=event.id,
            at=event.at,
            kind=event.kind,
            build=event.build_id,
            job=event.job_id,
            title=title,
            state=event.state,
            data=event.data,
        )
        for event, title in found
    ]


def has_ended(session: Session, build_id: str, after: int) -> bool:
    """Whether the last word on a build is that it has ended, and isn't past the event ``after``.

    Raises:
        NotFound
    """
    last = session.execute(
        select(Row.id, Row.state)
        .where(Row.build_id == build_id, Row.kind == "build")
        .order_by(Row.id.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return last.id <= after and last.state in BUILD_ENDED


def _writers_are_done(session: Session) -> bool:
    """Wait until those have ended that write events now; those that come later don't matter."""
    deadline = time.monotonic() + _PATIENCE_S
    writers = set(session.scalars(_WRITERS))
    while writers:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
        writers &= set(session.scalars(_WRITERS))
    return True


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
