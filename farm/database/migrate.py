"""Migrations, one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, inspect, select, text
from sqlalchemy.engine import Connection

from farm import installed
from farm.database.faults import RAISED, fault_of
from farm.database.session import Database
from farm.database.tables import SchemaFloor
from farm.errors import DatabaseUnavailable, SchemaOutdated
from farm.settings import Settings

MIGRATION_LOCK = 0x656E67696E65  # an arbitrary constant: the key of Postgres's advisory lock


@contextmanager
def _referring_later(connection: Connection) -> Iterator[None]:
    """On SQLite foreign keys are off meanwhile: a constraint is changed by recreating the table, and a table
    that others refer to couldn't be dropped. The setting can't be changed within a transaction.
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
            f"the upgrade would leave dangling references in {broken[0][0]}; it was rolled back",
            hint="restore the database from a backup; it was already damaged",
        )


def migrations() -> Path:
    """The folder of Alembic's migrations.

    Raises:
        ExtraMissing
    """
    return installed.parts() / "migrations"


def upgrade(settings: Settings | None = None) -> str:
    """Bring the database to the newest schema, one process at a time; return its revision.

    A newer one that suits this farm too stays: during an upgrade an old machine may start once more.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    db = Database((settings or Settings()).database)
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    try:
        # One transaction, begun before Alembic looks: on SQLite it would open one per migration, and between
        # two of them another process could start the same one.
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
            revision = MigrationContext.configure(connection).get_current_revision()
            if not _suits(connection, revision):
                command.upgrade(config, "head")
                _lay_floor(connection, ScriptDirectory.from_config(config))
                if db.is_sqlite:
                    _check_references(connection)
                revision = MigrationContext.configure(connection).get_current_revision()
    except RAISED as err:
        raise fault_of(err) or err from err
    except CommandError as err:
        raise SchemaOutdated(
            f"the database schema is from a newer farm: {err}",
            hint="update this machine's farm to the version of the others",
        ) from err
    finally:
        db.dispose()
    return str(revision)


def _lay_floor(connection: Connection, scripts: Any) -> None:
    """Note the newest migration that older farms can't live with: one that doesn't say `expands = True`."""
    breaking = (
        one.revision
        for one in scripts.walk_revisions()
        if not getattr(one.module, "expands", False)
    )
    connection.execute(delete(SchemaFloor))
    connection.execute(insert(SchemaFloor).values(revision=max(breaking)))


def _suits(connection: Connection, found: str | None) -> bool:
    """Whether the schema is newer than this farm's, and only has more than it needs."""
    if found is None or found <= newest_schema():
        return False
    if not inspect(connection).has_table(SchemaFloor.__tablename__):
        return False
    floor = connection.scalar(select(SchemaFloor.revision))
    return floor is not None and floor <= newest_schema()


def newest_schema() -> str:
    """The revision that this code is for."""
    return max(path.name[:4] for path in migrations().glob("versions/[0-9]*.py"))


def require_schema(db: Database) -> None:
    """Return if the database has the schema that this code is for, or a newer one that suits it too.

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
            if _suits(connection, found):
                return
    except RAISED as err:
        raise fault_of(err) or err from err
    if found is None:
        raise SchemaOutdated("the database has no schema yet")
    if found > wanted:
        raise SchemaOutdated(
            f"the database schema is {found}, from a newer farm: this one knows {wanted}",
            hint="update this machine's farm to the version of the others",
        )
    if found < wanted:
        raise SchemaOutdated(f"the database schema is {found}, but this farm needs {wanted}")
