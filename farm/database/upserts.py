"""Writes a row that another transaction may be writing too.

Looking first and inserting then loses the race on Postgres: the later one violates a constraint, or, where
it looked between the two, writes over what it hasn't seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from farm.database.base import Base


def insert_new(session: Session, table: type[Base], values: Mapping[str, object]) -> bool:
    """Insert a row unless its key is taken; return whether it wasn't."""
    statement = _insert(session, table, values).on_conflict_do_nothing()
    return session.connection().execute(statement).rowcount > 0


def put(session: Session, table: type[Base], values: Mapping[str, object]) -> None:
    """Insert a row, or replace these values of the one with its key. The later transaction's stand."""
    keys = [column.name for column in inspect(table).primary_key]
    statement = _insert(session, table, values)
    rest = {name: statement.excluded[name] for name in values if name not in keys}
    session.flush()  # what the row refers to
    session.connection().execute(statement.on_conflict_do_update(index_elements=keys, set_=rest))
    known = session.identity_map.get(
        session.identity_key(table, tuple(values[key] for key in keys))
    )
    if known is not None:
        session.expire(known)


def _insert(
    session: Session, table: type[Base], values: Mapping[str, object]
) -> postgresql.Insert | sqlite.Insert:
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(table).values(**values)
    return postgresql.insert(table).values(**values)
