"""The database: engine, sessions, and errors that say what to do."""

from __future__ import annotations

import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Engine,
    create_engine,
    event,
)
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from farm.database import gpu_times, noted, tallies
from farm.database.commits import Herald, Watch
from farm.database.faults import BUSY, RAISED, fault_of
from farm.database.pings import keep_working
from farm.errors import DatabaseUnavailable, InvalidRequest

#: A network that swallows packets is noticed within seconds: a worker must know by then that it can't keep
#: its lease.
_CONNECT_S, _SILENCE_MS = 5, 10_000
_URL_HINT = "use postgresql://USER:PASSWORD@HOST:5432/NAME or sqlite:////PATH"


PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
    # A checkpoint waits for the disk. At 32 MB of log instead of 4, the same pages are written less often.
    "wal_autocheckpoint=8000",
)


class Database:
    """Sessions on one database, SQLite in WAL mode or Postgres."""

    def __init__(self, url: str, *, pool_size: int = 10, patience_s: float = 30.0) -> None:
        """
        Parameters:
            patience_s: how long a unit of work waits for other writers, or for a connection.
        """
        self.url = _understood(url)
        self._patience_s = patience_s
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = self._sqlite() if self.is_sqlite else self._postgres(pool_size)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        # SQLite has one writer, and makes the others sleep and poll. Within a process they queue instead.
        self._writer = threading.Lock() if self.is_sqlite else None
        self._shard = 0 if self.is_sqlite else random.randrange(tallies.SHARDS)  # noqa: S311
        self._herald = None if self.is_sqlite else Herald(self.engine)

    def _sqlite(self) -> Engine:
        if self.url.database and self.url.database != ":memory:":
            file = Path(self.url.database)
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # SQLite reports what is wrong
                # Private to this user; the files that SQLite creates beside it inherit its permissions.
                os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
        # An in-memory database has one connection per thread and no pool to wait for.
        waits = {"pool_timeout": self._patience_s} if self.url.database else {}
        engine = create_engine(
            self.url, connect_args={"timeout": self._patience_s}, pool_size=20, **waits
        )

        @event.listens_for(engine, "connect")
        def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
            # The driver would begin transactions by itself, too late for BEGIN IMMEDIATE.
            connection.isolation_level = None
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # A read transaction that becomes a write can't wait for another writer: it would fail at once.
            options = connection.get_execution_options()
            # To a tenth of a second: then it is mostly what it was.
            tenths = math.ceil(options.get("farm_patience_s", self._patience_s) * 10)
            if connection.info.get("farm_patience_tenths") != tenths:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={tenths * 100}")
                connection.info["farm_patience_tenths"] = tenths
            immediate = options.get("farm_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

        return engine

    def _postgres(self, pool_size: int) -> Engine:
        limits = {"connect_timeout": _CONNECT_S, "tcp_user_timeout": _SILENCE_MS}
        engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=20,
            pool_timeout=self._patience_s,
            connect_args=limits,
        )

        @event.listens_for(engine, "connect")
        def _patience(connection: Any, _record: object) -> None:
            # Not in the connection options, which a pooler may not support.
            with connection.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = {int(self._patience_s * 1000)}")
            connection.commit()

        keep_working(engine)
        return engine

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Session]:
        """A session for reading.

        Parameters:
            snapshot: whether all statements see what the first one saw, on Postgres as on SQLite.

        Raises:
            DatabaseUnavailable, InvalidRequest
        """
        with self._session() as session:
            if snapshot and not self.is_sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A unit of work: commits at its end, rolls back on any error.

        Raises:
            DatabaseUnavailable
            InvalidRequest: the database can't store a value.
        """
        with self._turn() as patience_s, self._session(write_within_s=patience_s) as session:
            yield session
            noted.settle(session)
            gpu_times.settle(session)
            tallies.settle(session, self._shard)
            session.commit()
        if self._herald is not None:
            self._herald.tell()

    def watch(self) -> Watch:
        """What waits for commits; to be closed."""
        return Watch(self.engine)

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """This process's turn to write; yields how long to wait for other processes."""
        if self._writer is None:
            yield self._patience_s
            return
        began = time.monotonic()
        if not self._writer.acquire(timeout=self._patience_s):
            raise DatabaseUnavailable(BUSY)
        try:
            yield max(0.0, self._patience_s - (time.monotonic() - began))
        finally:
            self._writer.release()

    @contextmanager
    def _session(self, *, write_within_s: float | None = None) -> Iterator[Session]:
        session = self._sessions()
        try:
            if write_within_s is not None:
                options = {"farm_write": True, "farm_patience_s": write_within_s}
                session.connection(execution_options=options)
            yield session
        except PoolTimeout as err:
            raise DatabaseUnavailable("all connections to the database are in use") from err
        except RAISED as err:
            fault = fault_of(err)
            if fault is not None:
                raise fault from err
            raise
        finally:
            # Rolls back what isn't committed. Where the connection broke meanwhile the database has done so:
            # what was read stands, and an error keeps its own words.
            with suppress(DBAPIError):
                session.close()

    def dispose(self) -> None:
        if self._herald is not None:
            self._herald.stop()
        self.engine.dispose()


def _understood(url: str) -> URL:
    """The URL of a database that the farm can use.

    Raises:
        InvalidRequest
    """
    try:
        found = make_url(url)
    except ArgumentError as err:
        raise InvalidRequest(f"FARM_DATABASE_URL isn't a valid URL: {err}", hint=_URL_HINT) from err
    if found.drivername == "postgres":  # as libpq and many platforms spell it
        found = found.set(drivername="postgresql")
    if found.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidRequest(
            f"the farm supports Postgres and SQLite, not {found.get_backend_name()}",
            hint=_URL_HINT,
        )
    return found
