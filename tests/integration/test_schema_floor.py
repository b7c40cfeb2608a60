"""A farm works with a newer schema that says it suits it, as while a fleet is upgraded."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, text

from farm.database import migrate
from farm.database.session import Database
from farm.errors import SchemaOutdated
from farm.settings import Settings
from tests.integration.test_schema import config, run

pytestmark = pytest.mark.services


def newer(db: Database, floor: str | None) -> None:
    """As a newer farm left it, with the oldest one that it suits."""
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        session.execute(text("DELETE FROM schema_floor"))
        if floor:
            session.execute(text(f"INSERT INTO schema_floor VALUES ('{floor}')"))


def test_a_newer_schema_that_suits_this_farm_is_taken_and_left(db, database_url):
    newer(db, migrate.newest_schema())
    migrate.require_schema(db)
    assert migrate.upgrade(Settings(database_url=database_url)) == "9999"


@pytest.mark.parametrize("floor", ["9998", None])
def test_a_newer_schema_that_needs_newer_farms_is_refused(db, database_url, floor):
    newer(db, floor)
    with pytest.raises(SchemaOutdated, match="from a newer farm"):
        migrate.require_schema(db)
    with pytest.raises(SchemaOutdated, match="from a newer farm"):
        migrate.upgrade(Settings(database_url=database_url))


def test_a_newer_schema_of_before_there_was_a_floor_is_refused(db):
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        session.execute(text("DROP TABLE schema_floor"))
    with pytest.raises(SchemaOutdated, match="from a newer farm"):
        migrate.require_schema(db)


def test_an_upgrade_notes_the_newest_migration_that_older_farms_cannot_live_with(db):
    scripts = ScriptDirectory.from_config(config()).walk_revisions()
    breaking = max(one.revision for one in scripts if not getattr(one.module, "expands", False))
    with db.read() as session:
        assert session.execute(text("SELECT revision FROM schema_floor")).all() == [(breaking,)]


def test_a_migration_that_says_it_only_expands_adds_what_older_farms_need_not_fill(db):
    expanding = [
        one.revision
        for one in ScriptDirectory.from_config(config()).walk_revisions()
        if getattr(one.module, "expands", False)
    ]
    for revision in expanding:
        run(db, command.downgrade, str(int(revision) - 1).zfill(4))
        before = MetaData()
        before.reflect(db.engine)
        run(db, command.upgrade, revision)
        for change in _undone(db, before):
            assert isinstance(change, ops.DropTableOp | ops.DropColumnOp | ops.DropIndexOp), (
                f"{revision} changes what was there: {change}"
            )
            if isinstance(change, ops.DropColumnOp):
                column = change._reverse.column
                assert column.nullable or column.server_default is not None, (
                    f"{revision}: an older farm doesn't know {change.table_name}.{column.name}"
                )
            assert not getattr(change, "_reverse", None) or not getattr(
                change._reverse, "unique", False
            ), f"{revision}: what an older farm writes may break a unique index"


def _undone(db: Database, before: MetaData) -> list[ops.MigrateOperation]:
    """What would have to be done to the database to get these tables again."""
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        script = produce_migrations(context, before)
    found: list[ops.MigrateOperation] = []
    waiting: list[ops.MigrateOperation] = list(script.upgrade_ops.ops)
    while waiting:
        one = waiting.pop()
        if isinstance(one, ops.OpContainer):
            waiting += one.ops
        else:
            found.append(one)
    return found
