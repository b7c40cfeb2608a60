"""The database's records of the store's blobs: which exist, and what refers to them.

A row of ``artifacts`` promises that a blob exists. Putting the blob again or asking for it renews the row;
``forget`` only withdraws old promises that nothing relies on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.references import referred
from farm.database.tables import Artifact, Job


def remember(session: Session, digest: str, *, size: int, owner: str | None = None) -> None:
    """Note that a blob is in the store, as of now.

    Parameters:
        owner: the client that stores it: it counts for whoever did so first.
    """
    row = _row(digest, size) | {"owner": owner}
    session.connection().execute(_REMEMBER[session.get_bind().dialect.name], [row])


def remember_all(session: Session, sizes: Mapping[str, int], *, job_id: int) -> None:
    """As ``remember``, what a job made for its client: digest → size, locked in this order."""
    values = [_row(digest, size) | {"of_job": job_id} for digest, size in sizes.items()]
    if values:
        session.connection().execute(_MADE[session.get_bind().dialect.name], values)


def _row(digest: str, size: int) -> dict[str, Any]:
    return {"digest": digest, "bytes": size, "created_at": now(), "lost_at": None}


def _upsert(statement: postgresql.Insert | sqlite.Insert) -> Any:
    # DO UPDATE, not DO NOTHING: it waits for a `forget` that is about to delete the row, and inserts it
    # again.
    young = {
        "created_at": statement.excluded.created_at,
        "bytes": statement.excluded.bytes,
        "lost_at": statement.excluded.lost_at,
        "owner": func.coalesce(Artifact.owner, statement.excluded.owner),
    }
    return statement.on_conflict_do_update(index_elements=["digest"], set_=young)


_REMEMBER = {
    "sqlite": _upsert(sqlite.insert(Artifact)),
    "postgresql": _upsert(postgresql.insert(Artifact)),
}
# One statement, so that a job's end asks no more of the database.
_CLIENT = select(Job.client).where(Job.id == bindparam("of_job")).scalar_subquery()
_MADE = {
    "sqlite": _upsert(sqlite.insert(Artifact).values(owner=_CLIENT)),
    "postgresql": _upsert(postgresql.insert(Artifact).values(owner=_CLIENT)),
}


# Built once: every submission of new work runs it.
_SIZE = select(Artifact.bytes).where(Artifact.digest == bindparam("digest"))


def size(session: Session, digest: str) -> int | None:
    """A blob's size in bytes, or None if the database doesn't know it."""
    return session.connection().scalar(_SIZE, {"digest": digest})


_OWNED = select(func.sum(Artifact.bytes)).where(Artifact.owner == bindparam("owner"))


def owned_bytes(session: Session, owner: str) -> int:
    """The bytes of the blobs that this client stored first."""
    return int(session.connection().scalar(_OWNED, {"owner": owner}) or 0)


def renew(session: Session, digest: str) -> int | None:
    """Renew a blob that somebody relies on; return its size in bytes, or None if it doesn't exist."""
    return session.scalar(
        update(Artifact)
        .where(Artifact.digest == digest, Artifact.lost_at.is_(None))
        .values(created_at=now())
        .returning(Artifact.bytes)
    )


def lose(session: Session, digest: str) -> None:
    """Withdraw the promise that a blob exists: it was damaged."""
    session.execute(update(Artifact).where(Artifact.digest == digest).values(lost_at=now()))


def lost(session: Session, *, most: int) -> list[str]:
    """Blobs that were damaged or are missing, the latest first."""
    rows = select(Artifact.digest).where(Artifact.lost_at.is_not(None))
    return list(session.scalars(rows.order_by(Artifact.lost_at.desc()).limit(most)))


def ages(session: Session, digests: Collection[str]) -> dict[str, datetime]:
    """When blobs were last put or asked for, for those the database knows."""
    rows = session.execute(
        select(Artifact.digest, Artifact.created_at).where(Artifact.digest.in_(digests))
    )
    return dict(rows.tuples().all())


def forget(
    session: Session, digests: Collection[str], *, before: datetime, since: datetime
) -> set[str]:
    """Delete the rows of blobs that nothing refers to; return the digests that now have no row.

    Parameters:
        digests: blobs that nothing referred to at ``since`` or a while later.
        before: newer rows are kept.
    """
    known = ages(session, digests)
    # A submission takes a shared lock on the blobs it looks up (`builds`): skip those. A later one waits
    # for us and doesn't find them.
    old = session.scalars(
        select(Artifact.digest)
        .where(Artifact.digest.in_(known), Artifact.created_at < before)
        .with_for_update(skip_locked=True)
    ).all()
    # A separate query after the lock, which sees everything committed until then.
    needed = referred(session, since=since)
    gone = set(old) - needed
    session.execute(delete(Artifact).where(Artifact.digest.in_(gone)))
    return gone | (set(digests) - known.keys() - needed)
