"""Pages of credentials: those that were created last come first."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select, or_, select

from farm.database.tables import ApiKey, JoinToken

T = TypeVar("T", ApiKey, JoinToken)


def newest_first(table: type[T], *, before: T | None, limit: int) -> Select[T]:
    """Rows, newest first; only older ones than ``before``."""
    found = select(table).order_by(table.created_at.desc(), table.id.desc()).limit(limit)
    if before is None:
        return found
    return found.where(
        or_(
            table.created_at < before.created_at,
            (table.created_at == before.created_at) & (table.id < before.id),
        )
    )
