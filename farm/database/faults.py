"""Translates database errors into the farm's, with what to do about them."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InvalidRequestError,
    OperationalError,
    SQLAlchemyError,
)

from farm.errors import (
    DatabaseDamaged,
    DatabaseUnavailable,
    FarmError,
    InvalidRequest,
    SchemaOutdated,
    StorageFull,
)

#: What a statement may raise for a fault of the database; the pool's own is the second.
RAISED = (DBAPIError, InvalidRequestError)
BUSY = "timed out waiting for other writers to the database"
_CLOSED = "This connection is closed"
_FULL = "the database's disk is full"
_UNDEFINED = ("42P01", "42703")  #: a table, a column
_DISK_FULL, _LOCK_NOT_AVAILABLE = "53100", "55P03"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
#: Postgres's errors before a session begins have no code.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|role .* does not exist"
)
_NO_DATABASE = re.compile(r"database .* does not exist")


def fault_of(err: SQLAlchemyError) -> FarmError | None:
    """The farm's error for a driver's; None if the statement is wrong, which is a bug in the farm."""
    if not isinstance(err, DBAPIError):
        # Two connections in a row that broke before they were used: the pool has no error of its own for it.
        if str(err) == _CLOSED:
            return DatabaseUnavailable("the database ended each connection that was made to it")
        return None
    if isinstance(err.orig, sqlite3.DatabaseError):
        return _of_sqlite(err.orig) or _of_values(err)
    state = getattr(err.orig, "sqlstate", None)
    if state == _LOCK_NOT_AVAILABLE:
        return DatabaseUnavailable(BUSY)
    if state == _DISK_FULL:
        return StorageFull(_FULL)
    if state in _UNDEFINED:
        return SchemaOutdated(f"the database schema doesn't match this farm: {_said(err)}")
    if isinstance(err, OperationalError) or err.connection_invalidated:
        return DatabaseUnavailable(f"the database can't be reached: {_said(err)}", hint=_hint(err))
    return _of_values(err)


def _of_sqlite(err: sqlite3.DatabaseError) -> FarmError | None:
    code = getattr(err, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseUnavailable(BUSY)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(_FULL)
    if code in _DAMAGED:
        return DatabaseDamaged(f"the database's file is damaged: {err}")
    if "no such table" in str(err) or "no such column" in str(err) or "has no column" in str(err):
        return SchemaOutdated(f"the database schema doesn't match this farm: {err}")
    if isinstance(err, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
        return DatabaseUnavailable(f"the database can't be reached: {err}")
    return None


def _of_values(err: DBAPIError) -> FarmError | None:
    if not isinstance(err, DataError):
        return None
    return InvalidRequest(
        f"a value can't be stored: {_said(err)}",
        hint="look for NUL characters, lone surrogates and numbers out of range",
    )


def is_refused(err: FarmError) -> bool:
    """Whether the database is reachable but refuses: waiting won't help."""
    return bool(_REFUSED.search(err.detail) or _NO_DATABASE.search(err.detail))


def _hint(err: DBAPIError) -> str:
    said = str(err.orig)
    if _REFUSED.search(said):
        return "check the user and password in FARM_DATABASE_URL, and that Postgres admits this machine"
    if _NO_DATABASE.search(said):
        return "create it (createdb NAME), then: farm db upgrade; or correct FARM_DATABASE_URL"
    return "is Postgres running at the host and port of FARM_DATABASE_URL? then try again"


def _said(err: DBAPIError) -> str:
    lines = str(err.orig).strip().splitlines()
    return lines[0] if lines else type(err.orig).__name__
