"""Yanks versions and engines: no pull takes them by default, and what asks for them is told why."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import EngineRow, Yank
from farm.errors import NotFound
from farm.registry import catalog, names, versions
from farm.registry.rows import identity
from farm.schemas.engines import EngineView

_MOST_WHO = 400


def yank_engine(session: Session, engine_id: str, reason: str, who: str) -> EngineView:
    """Yank an engine, with all its judgements.

    Raises:
        NotFound
    """
    row = _engine(session, engine_id)
    _keep(session, row.version_id, identity(row), reason, who)
    return catalog.engine(session, engine_id)


def restore_engine(session: Session, engine_id: str) -> EngineView:
    """Take an engine's yank back.

    Raises:
        NotFound
    """
    row = _engine(session, engine_id)
    _forget(session, row.version_id, identity(row))
    return catalog.engine(session, engine_id)


def yank_version(session: Session, model: str, number: int, reason: str, who: str) -> None:
    """Yank a version.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, model)
    _keep(session, versions.version_id(session, known, number), "", reason, who)


def restore_version(session: Session, model: str, number: int) -> None:
    """Take a version's yank back.

    Raises:
        NotFound, NameAmbiguous
    """
    _forget(session, versions.version_id(session, names.named(session, model), number), "")


def of_version(session: Session, version_id: int) -> str | None:
    """Why a version was yanked; None if it wasn't."""
    return session.scalar(select(Yank.reason).where(Yank.version_id == version_id, Yank.same == ""))


def _engine(session: Session, engine_id: str) -> EngineRow:
    row = session.get(EngineRow, engine_id)
    if row is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    return row


def _keep(session: Session, version_id: int, same: str, reason: str, who: str) -> None:
    made = Yank(version_id=version_id, same=same, reason=reason, who=who[:_MOST_WHO], at=now())
    session.merge(made)
    session.flush()


def _forget(session: Session, version_id: int, same: str) -> None:
    session.execute(delete(Yank).where(Yank.version_id == version_id, Yank.same == same))
