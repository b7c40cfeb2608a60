"""The database: engine, sessions, and migrations under a lock.

A unit of work is ``with db.write() as session``: it commits at its end, or rolls back. Services
never commit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    DateTime,
    Engine,
    MetaData,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from farm.database_faults import BUSY, fault_of
from farm.errors import DatabaseUnavailable, InvalidRequest, SchemaOutdated
from farm.settings import Settings

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
MIGRATION_LOCK = 0x656E67696E65  # any constant: the key of Postgres' advisory lock
_URL_HINT = "FARM_DATABASE_URL is postgresql://USER:PASSWORD@HOST:5432/NAME, or sqlite:////PATH"
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
    # A checkpoint waits for the disk: at 32 MB of log instead of 4, since the same pages come again.
    "wal_autocheckpoint=8000",
)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Instant(TypeDecorator[datetime]):
    """A UTC time, aware in Python. SQLite has no time zones, so it is stored naive there."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time in the database needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.fromtimestamp(time.time(), UTC)


class Database:
    """Sessions on one database, SQLite in WAL mode or Postgres."""

    def __init__(self, url: str, *, pool_size: int = 10, patience_s: float = 30.0) -> None:
        """
        Parameters:
            patience_s: for which a unit of work waits for others that write, or for a connection.
        """
        self.url = _understood(url)
        self._patience_s = patience_s
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = self._sqlite() if self.is_sqlite else self._postgres(pool_size)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        # SQLite has one writer, and makes the others sleep and ask again. Within a process they queue.
        self._writer = threading.Lock() if self.is_sqlite else None

    def _sqlite(self) -> Engine:
        if self.url.database and self.url.database != ":memory:":
            file = Path(self.url.database)
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # SQLite says what is wrong
                # Nobody else's to read; the files that SQLite makes beside it get its permissions.
                os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
        # One in memory has a connection for each thread, and none to wait for.
        waits = {"pool_timeout": self._patience_s} if self.url.database else {}
        engine = create_engine(
            self.url, connect_args={"timeout": self._patience_s}, pool_size=20, **waits
        )

        @event.listens_for(engine, "connect")
        def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
            # The driver would begin transactions on its own, and too late for BEGIN IMMEDIATE.
            connection.isolation_level = None
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # A read that turns into a write can't wait for another writer: it would fail at once.
            options = connection.get_execution_options()
            patience_s = options.get("farm_patience_s", self._patience_s)
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(patience_s * 1000)}")
            immediate = options.get("farm_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

        return engine

    def _postgres(self, pool_size: int) -> Engine:
        # A network that swallows packets is noticed within seconds: a worker must know by then that it
        # can't keep its lease.
        limits = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
        engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=20,
            pool_pre_ping=True,
            pool_timeout=self._patience_s,
            connect_args=limits,
        )

        @event.listens_for(engine, "connect")
        def _patience(connection: Any, _record: object) -> None:
            # Not in the connection's options, which a pooler between may not know.
            with connection.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = {int(self._patience_s * 1000)}")
            connection.commit()

        return engine

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading.

        Raises:
            DatabaseUnavailable, InvalidRequest
        """
        with self._session() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A unit of work: commits at its end, rolls back on any error.

        Raises:
            DatabaseUnavailable
            InvalidRequest: a value is none that the database can hold.
        """
        with self._turn() as patience_s, self._session(write_within_s=patience_s) as session:
            yield session
            session.commit()

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """This process's turn to write, and how long is left to wait for that of other processes."""
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
        except DBAPIError as err:
            session.rollback()
            fault = fault_of(err)
            if fault is not None:
                raise fault from err
            raise
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    def dispose(self) -> None:
        self.engine.dispose()


def _understood(url: str) -> URL:
    """The URL of a database that the farm can use.

    Raises:
        InvalidRequest
    """
    try:
        found = make_url(url)
    except ArgumentError as err:
        raise InvalidRequest(f"FARM_DATABASE_URL isn't an address: {err}", hint=_URL_HINT) from err
    if found.drivername == "postgres":  # as libpq and many a platform write it
        found = found.set(drivername="postgresql")
    if found.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidRequest(
            f"the farm keeps its state in Postgres or SQLite, not in {found.get_backend_name()}",
            hint=_URL_HINT,
        )
    return found


@contextmanager
def _referring_later(connection: Connection) -> Iterator[None]:
    """On SQLite foreign keys are off meanwhile: it changes a constraint by making the table anew, and
    wouldn't drop one that others refer to. That can't be said within a transaction.
    https://www.sqlite.org/lang_altertable.html#otheralter"""
    driver: Any = connection.connection.driver_connection
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        if is_sqlite:
            driver.execute("PRAGMA foreign_keys=ON")


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise DatabaseUnavailable(
            f"rows of {broken[0][0]} would refer to nothing after the upgrade, which wasn't made",
            hint="restore the database from a backup; it was damaged before",
        )


def upgrade(settings: Settings | None = None) -> str:
    """Bring the database to the newest schema, one process at a time; return its revision."""
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.util import CommandError

    db = Database((settings or Settings()).database)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        # One transaction, begun before Alembic looks: on SQLite it would make one a migration, and
        # between two of them another process would begin with the same.
        with (
            db.engine.connect().execution_options(farm_write=True) as connection,
            _referring_later(connection),
            connection.begin(),
        ):
            if not db.is_sqlite:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK}
                )
                connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if db.is_sqlite:
                _check_references(connection)
            revision = MigrationContext.configure(connection).get_current_revision()
    except DBAPIError as err:
        raise fault_of(err) or err from err
    except CommandError as err:
        raise SchemaOutdated(
            f"the database's schema is of a newer farm: {err}",
            hint="bring this machine's farm to the version that the others have",
        ) from err
    finally:
        db.dispose()
    return str(revision)


def newest_schema() -> str:
    """The revision that this code is for."""
    return max(path.name[:4] for path in MIGRATIONS.glob("versions/[0-9]*.py"))


def require_schema(db: Database) -> None:
    """Return if the database has the schema that this code is for.

    Raises:
        SchemaOutdated, DatabaseUnavailable, DatabaseDamaged
    """
    wanted = newest_schema()
    try:
        with db.engine.connect() as connection:
            there = inspect(connection).has_table("alembic_version")
            found = (
                connection.scalar(text("SELECT version_num FROM alembic_version"))
                if there
                else None
            )
    except DBAPIError as err:
        raise fault_of(err) or err from err
    if found is None:
        raise SchemaOutdated("the database has no schema yet")
    if found > wanted:
        raise SchemaOutdated(
            f"the database's schema is {found}, of a newer farm: this one knows {wanted}",
            hint="bring this machine's farm to the version that the others have",
        )
    if found < wanted:
        raise SchemaOutdated(f"the database's schema is {found}, and this farm needs {wanted}")
