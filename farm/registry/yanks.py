"""Yanks versions and engines: no pull takes them by default, and what asks for them is told why."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.base import now
from farm.database.tables import Yank
from farm.registry import catalog, names, versions
from farm.registry.rows import identity

_MOST_WHO = 400


def yank_engine(session: Session, engine_id: str, reason: str, who: str) -> bool:
    """Yank an engine, with all its judgements. Return whether that changed anything.

    Raises:
        NotFound
    """
    row = catalog.engine_row(session, engine_id)
    return _keep(session, row.version_id, identity(row), reason, who)


def restore_engine(session: Session, engine_id: str) -> bool:
    """Take an engine's yank back. Return whether there was one.

    Raises:
        NotFound
    """
    row = catalog.engine_row(session, engine_id)
    return _forget(session, row.version_id, identity(row))


def yank_version(session: Session, model: str, number: int, reason: str, who: str) -> bool:
    """Yank a version. Return whether that changed anything.

    Raises:
        NotFound
    """
    return _keep(
        session, versions.version_id(session, names.named(session, model), number), "", reason, who
    )


def restore_version(session: Session, model: str, number: int) -> bool:
    """Take a version's yank back. Return whether there was one.

    Raises:
        NotFound
    """
    return _forget(session, versions.version_id(session, names.named(session, model), number), "")


def of_version(session: Session, version_id: int) -> str | None:
    """Why a version was yanked; None if it wasn't."""
    return session.scalar(select(Yank.reason).where(Yank.version_id == version_id, Yank.same == ""))


def _keep(session: Session, version_id: int, same: str, reason: str, who: str) -> bool:
    before = session.get(Yank, (version_id, same))
    if before is not None and before.reason == reason:
        return False
    made = {"version_id": version_id, "same": same, "reason": reason}
    upserts.put(session, Yank, made | {"who": who[:_MOST_WHO], "at": now()})
    return True


def _forget(session: Session, version_id: int, same: str) -> bool:
    mine = delete(Yank).where(Yank.version_id == version_id, Yank.same == same)
    return session.scalar(mine.returning(Yank.version_id)) is not None
