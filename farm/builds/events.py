"""A build's event stream: in order, and without gaps even for a reader that resumes.

An event gets its number before its transaction commits. On Postgres an event may thus appear after one with a
higher number, and a reader that has moved past the higher number would miss it. So readers wait, for a few
milliseconds, for the transactions that are writing events at that moment.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, func, select, text, union_all
from sqlalchemy.orm import Session

from farm.database.tables import BuildJob, Job, JobLog
from farm.database.tables import Event as Row
from farm.errors import NotFound
from farm.schemas.events import Event
from farm.specs.states import BUILD_ENDED

PAGE = 500  #: events read at once
_PAUSE_S = 0.005
_PATIENCE_S = 2.0  #: longer than any of the farm's transactions takes
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = 'events'::regclass "
    "AND mode = 'RowExclusiveLock' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def since(session: Session, build_id: str, after: int = 0, *, limit: int = PAGE) -> list[Event]:
    """Events of a build and its jobs since its submission, after the event ``after``.

    Raises:
        NotFound
    """
    news = _of_build(session, build_id, after).limit(limit)
    found = session.execute(news).all()
    if found and not _is_sqlite(session):
        last = found[-1][0].id
        if not _writers_are_done(session):
            return []
        found = session.execute(news.where(Row.id <= last)).all()
    return _told(session, found)


def history(
    session: Session, build_id: str, after: int, upto: int, *, limit: int = PAGE
) -> list[Event]:
    """Events of a build after the event ``after``, up to one that is ``settled``.

    Raises:
        NotFound
    """
    was = _of_build(session, build_id, after).where(Row.id <= upto).limit(limit)
    return _told(session, session.execute(was).all())


def _of_build(session: Session, build_id: str, after: int) -> Select[Row, str]:
    first = session.scalar(select(func.min(Row.id)).where(Row.build_id == build_id))
    if first is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    after = max(after, first - 1)
    jobs = select(BuildJob.job_id).where(BuildJob.build_id == build_id)
    # Two reads of indexes: with an OR, Postgres would read every event since the build's first.
    theirs = union_all(
        select(Row.id).where(Row.build_id == build_id, Row.id > after),
        select(Row.id).where(Row.job_id.in_(jobs), Row.id > after),
    )
    return (
        select(Row, Job.title)
        .outerjoin(Job, Job.id == Row.job_id)
        .where(Row.id.in_(theirs))
        .order_by(Row.id)
    )


def _told(session: Session, rows: Iterable[tuple[Row, str | None]]) -> list[Event]:
    """Events as readers see them; log text is read only for the events among them."""
    rows = list(rows)
    printed = [row.id for row, _ in rows if row.kind == "log"]
    texts = select(JobLog.event_id, JobLog.text).where(JobLog.event_id.in_(printed))
    text_of = dict(session.execute(texts).tuples().all()) if printed else {}
    return [_event(row, title, text_of.get(row.id)) for row, title in rows]


def _event(row: Row, title: str | None, text: str | None) -> Event:
    return Event(
        id=row.id,
        at=row.at,
        kind=row.kind,
        build=row.build_id,
        job=row.job_id,
        title=title,
        state=row.state,
        data=row.data if text is None else {"text": text, **row.data},
    )


@dataclass(frozen=True, kw_only=True)
class News:
    """Events of several builds."""

    upto: int  #: complete up to this event
    events: Sequence[Event] = ()
    builds: Mapping[int, Collection[str]] = field(
        default_factory=dict
    )  #: event → the builds it concerns


def settled(session: Session) -> int | None:
    """The last event before which no other can still appear; None while a writer is slow to commit."""
    upto = session.scalar(select(func.max(Row.id))) or 0
    return upto if _is_sqlite(session) or _writers_are_done(session) else None


def news(session: Session, builds: Collection[str], after: int, *, limit: int = PAGE) -> News:
    """Events of any of these builds and their jobs after the event ``after``.

    One query for new events, however many builds there are.
    """
    newest = session.scalar(select(func.max(Row.id))) or 0
    upto = settled(session) if newest > after else None
    if upto is None:
        return News(upto=after)
    rows = session.execute(
        select(Row, Job.title)
        .outerjoin(Job, Job.id == Row.job_id)
        .where(Row.id > after, Row.id <= upto)
        .order_by(Row.id)
        .limit(limit)
    ).all()
    if len(rows) == limit:
        upto = rows[-1][0].id
    concerned = _concerned(session, [row for row, _ in rows], builds)
    events = _told(session, [(row, title) for row, title in rows if concerned[row.id]])
    return News(upto=upto, events=events, builds=concerned)


def _concerned(
    session: Session, rows: Sequence[Row], builds: Collection[str]
) -> dict[int, set[str]]:
    wanting: dict[int, set[str]] = {row.job_id: set() for row in rows if row.job_id is not None}
    pairs = select(BuildJob.job_id, BuildJob.build_id).where(BuildJob.job_id.in_(wanting))
    for job_id, build_id in session.execute(pairs) if wanting else ():
        if build_id in builds:
            wanting[job_id].add(build_id)
    concerned = {row.id: set(wanting.get(row.job_id or 0, ())) for row in rows}
    for row in rows:
        if row.build_id is not None and row.build_id in builds:
            concerned[row.id].add(row.build_id)
    return concerned


def end(session: Session, build_id: str) -> int | None:
    """The event with which a build ended; None while it is live.

    Raises:
        NotFound
    """
    last = _last_word(session, build_id)
    return last.id if last.state in BUILD_ENDED else None


def has_ended(session: Session, build_id: str, after: int) -> bool:
    """Whether a build has ended, and its last event isn't after the event ``after``.

    Raises:
        NotFound
    """
    last = _last_word(session, build_id)
    return last.id <= after and last.state in BUILD_ENDED


def _last_word(session: Session, build_id: str) -> Any:
    last = session.execute(
        select(Row.id, Row.state)
        .where(Row.build_id == build_id, Row.kind == "build")
        .order_by(Row.id.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return last


def _writers_are_done(session: Session) -> bool:
    """Wait until the transactions that are writing events now have ended; later ones don't matter."""
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
