"""What the database knows of the store's blobs: that they are there, and who refers to them.

A row of ``artifacts`` is the promise that a blob is there. Putting the blob again or asking for it makes
the row young; ``forget`` takes back only old promises that nobody counts on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.ids import first_id
from farm.database.tables import Artifact, Build, EngineRow, Job, Plugin, TimingCache, Version
from farm.specs.roles import GIVEN
from farm.specs.states import JobState

_ROWS = 1000  #: read at once


def remember(session: Session, digest: str, *, size: int) -> None:
    """Note that a blob is in the store, as of now."""
    values = {"digest": digest, "bytes": size, "created_at": now(), "lost_at": None}
    session.connection().execute(_REMEMBER[session.get_bind().dialect.name], values)


def _upsert(statement: postgresql.Insert | sqlite.Insert) -> Any:
    # An update rather than nothing: it waits for a `forget` that is about to delete the row, and
    # puts it there again.
    young = {
        "created_at": statement.excluded.created_at,
        "bytes": statement.excluded.bytes,
        "lost_at": statement.excluded.lost_at,
    }
    return statement.on_conflict_do_update(index_elements=["digest"], set_=young)


_REMEMBER = {
    "sqlite": _upsert(sqlite.insert(Artifact)),
    "postgresql": _upsert(postgresql.insert(Artifact)),
}


def renew(session: Session, digest: str) -> int | None:
    """Make a blob young, since somebody counts on it; return its bytes, or None if it isn't there."""
    return session.scalar(
        update(Artifact)
        .where(Artifact.digest == digest, Artifact.lost_at.is_(None))
        .values(created_at=now())
        .returning(Artifact.bytes)
    )


def lose(session: Session, digest: str) -> None:
    """Take the promise back that a blob is there: it was damaged."""
    session.execute(update(Artifact).where(Artifact.digest == digest).values(lost_at=now()))


def referred(session: Session, *, since: datetime | None = None) -> set[str]:
    """The digests that anything in the database refers to. Some are keys of jobs, and no blobs.

    Parameters:
        since: only what builds refer to that were submitted since, and jobs that succeeded since.
            With them the versions and the recipes are covered: they come with a build. Engines are
            what jobs have made.
    """
    builds = select(*(Build.request[(role, "digest")].as_string() for role in GIVEN))
    outputs = select(Job.outputs).where(Job.state == JobState.SUCCEEDED)
    if since is not None:
        builds = builds.where(Build.id >= first_id(since))
        outputs = outputs.where(Job.finished_at >= since)
    found = {digest for row in _rows(session, builds) for digest in row if digest}
    found.update(_values(session, outputs))
    # These are few: one may have come there just now.
    for newest in (TimingCache.digest, Plugin.digest):
        found.update(digest for (digest,) in _rows(session, select(newest)))
    if since is None:
        found.update(_values(session, select(Job.recipe["inputs"])))
        for column in (Version.source_digest, EngineRow.digest):
            found.update(digest for (digest,) in _rows(session, select(column)))
    return found


def _rows(session: Session, statement: Select[*tuple[Any, ...]]) -> Iterable[Any]:
    return session.execute(statement.execution_options(yield_per=_ROWS))


def _values(session: Session, statement: Select[*tuple[Any, ...]]) -> Iterator[str]:
    for (named,) in _rows(session, statement):
        roles: Mapping[str, str] = named or {}
        yield from roles.values()


def ages(session: Session, digests: Collection[str]) -> dict[str, datetime]:
    """When those of the blobs that the database knows were last put or asked for."""
    rows = session.execute(
        select(Artifact.digest, Artifact.created_at).where(Artifact.digest.in_(digests))
    )
    return dict(rows.tuples().all())


def forget(
    session: Session, digests: Collection[str], *, before: datetime, since: datetime
) -> set[str]:
    """Delete the rows of those blobs that nothing refers to; return the digests without a row now.

    Parameters:
        digests: blobs that nothing referred to at ``since``, or a while later.
        before: rows younger than this stay.
    """
    known = ages(session, digests)
    # A submission shares a lock on the blobs that it looks for (`builds`): those that it holds are
    # skipped. One that comes later waits for us, and doesn't find them.
    old = session.scalars(
        select(Artifact.digest)
        .where(Artifact.digest.in_(known), Artifact.created_at < before)
        .with_for_update(skip_locked=True)
    ).all()
    # A look of its own, after the lock: it sees whatever was committed until then.
    needed = referred(session, since=since)
    gone = set(old) - needed
    session.execute(delete(Artifact).where(Artifact.digest.in_(gone)))
    return gone | (set(digests) - known.keys() - needed)
