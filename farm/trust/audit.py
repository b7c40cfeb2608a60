"""The audit: who changed what, from where and when, written in the transaction that makes the change.

Rows are added and read. Nothing changes or deletes one: the database itself refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from farm.database.base import Base, now
from farm.database.tables import AuditRow
from farm.trust.callers import Caller

_INSERT = insert(Base.metadata.tables[AuditRow.__tablename__])
_LONGEST = {"who": 400, "label": 100, "address": 100, "object": 200}


def record(session: Session, by: Caller, action: str, object: str, **details: Any) -> None:
    """Record a change that this unit of work makes."""
    row: dict[str, Any] = {
        "who": by.name,
        "label": by.label,
        "address": by.address,
        "object": object,
    }
    row = {name: row[name][:most] for name, most in _LONGEST.items()}
    row |= {"at": now(), "key_id": by.key_id, "action": action, "details": details or None}
    session.connection().execute(_INSERT, [row])


def page(
    session: Session,
    *,
    key: str | None = None,
    action: str | None = None,
    before: int | None = None,
    limit: int,
) -> Sequence[AuditRow]:
    """Audit entries, newest first.

    Parameters:
        key: the id of the key that made them.
        before: the id of the oldest row of the previous page.
    """
    found = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if key is not None:
        found = found.where(AuditRow.key_id == key)
    if action is not None:
        found = found.where(AuditRow.action == action)
    if before is not None:
        found = found.where(AuditRow.id < before)
    return session.scalars(found).all()
