"""The schema: what the migrations make is what the models declare, there and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from farm.database import migrate
from farm.database import tables as declared
from farm.database.base import Base
from farm.database.migrate import migrations, require_schema
from farm.database.session import Database
from farm.database.tables import OciDocument, OciManifest, OciTag
from farm.errors import DatabaseUnavailable, FarmError
from farm.planning import keys
from farm.settings import Settings

assert declared  # imported for its tables
TOGETHER = 4


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return made


HEAD = ScriptDirectory.from_config(config()).get_current_head()


def tables(db: Database) -> set[str]:
    return set(inspect(db.engine).get_table_names()) - {"alembic_version"}


def differences(db: Database) -> list:
    with db.engine.connect() as connection:
        options = {"compare_type": True, "render_as_batch": db.is_sqlite}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, Base.metadata)


def run(db: Database, step, revision: str) -> None:
    alembic = config()
    with db.engine.connect().execution_options(farm_write=True) as connection:
        alembic.attributes["connection"] = connection
        step(alembic, revision)
        connection.commit()


@pytest.fixture
def blank(db, database_url) -> Settings:
    """The settings of a database in which nothing was ever made."""
    if db.is_sqlite:
        for ending in ("", "-wal", "-shm"):
            Path(f"{db.url.database}{ending}").unlink(missing_ok=True)
    else:
        run(db, command.downgrade, "base")
        with db.engine.begin() as connection:
            connection.execute(text("DROP TABLE alembic_version"))
    return Settings(database_url=database_url)


def test_the_migrated_schema_is_the_declared_one(db):
    assert differences(db) == []
    assert tables(db) == set(Base.metadata.tables)


def test_the_index_of_single_flight_is_partial_and_unique(db):
    # compare_metadata doesn't look at an index's WHERE, and the farm's single flight rests on it.
    [index] = [
        i for i in inspect(db.engine).get_indexes("jobs") if i["name"] == "uq_jobs_key_usable"
    ]
    where = index["dialect_options"][f"{db.engine.dialect.name}_where"]
    assert index["unique"]
    assert "failed" in str(where)
    assert "cancelled" in str(where)


def test_migrations_go_down_and_up_again(db, database_url):
    run(db, command.downgrade, "base")
    assert tables(db) == set()
    with pytest.raises(FarmError, match="no schema yet"):
        require_schema(db)
    assert migrate.upgrade(Settings(database_url=database_url)) == HEAD
    assert differences(db) == []


def test_there_is_one_head():
    assert len(ScriptDirectory.from_config(config()).get_heads()) == 1


def test_an_upgrade_can_be_repeated(db, database_url):
    for _ in range(2):
        assert migrate.upgrade(Settings(database_url=database_url)) == HEAD
    assert differences(db) == []


def test_four_processes_upgrade_a_blank_database_at_once(db, blank):
    program = (
        "import sys; from farm.database.migrate import upgrade; sys.stdin.read(); print(upgrade())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"FARM_DATABASE_URL": blank.database_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(TOGETHER)
    ]
    for process in started:
        process.stdin.close()  # the starting shot
    for process in started:
        process.wait(60)
    said = [(p.stdout.read().strip(), p.returncode, p.stderr.read()[-2000:]) for p in started]
    assert [(revision, code) for revision, code, _ in said] == [(HEAD, 0)] * TOGETHER, said
    assert differences(db) == []


def test_a_database_out_of_reach_is_told_as_such():
    settings = Settings(database_url="postgresql://farm@127.0.0.1:1/farm")
    with pytest.raises(DatabaseUnavailable, match="can't be reached"):
        migrate.upgrade(settings)


def test_versions_from_before_variants_keep_their_architecture(db, database_url):
    run(db, command.downgrade, "0006")
    architecture = {"library": "timm", "name": "resnet18", "config": {}}
    source = {"digest": "sha256:1", "format": "safetensors", "architecture": architecture}
    at = "'2026-01-01 00:00:00'"
    with db.engine.begin() as connection:
        for statement in (
            f"INSERT INTO models (id, name, created_at) VALUES (1, 'm', {at})",
            "INSERT INTO versions (id, model_id, number, source_digest, source_format, created_at) "
            f"VALUES (1, 1, 1, 'sha256:1', 'safetensors', {at}), (2, 1, 2, 'sha256:2', 'onnx', {at})",
            "INSERT INTO builds (id, version_id, state, request, priority, client, created_at) VALUES "
            f"('b1', 1, 'queued', '{json.dumps({'source': source})}', 5, '', {at})",
        ):
            connection.execute(text(statement))
    assert migrate.upgrade(Settings(database_url=database_url)) == HEAD
    with db.read() as session:
        first, second = session.scalars(select(declared.Version).order_by(declared.Version.id))
    assert first.architecture == architecture
    assert first.variant == keys.variant(None, architecture)
    assert (second.variant, second.architecture, second.fixed_inputs) == ("", None, None)


def test_what_was_pushed_before_digests_could_be_longer_stays(db, database_url):
    run(db, command.downgrade, "0024")
    digest, about = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
    with db.write() as session:
        session.add(OciDocument(digest=digest, media_type="a/b", body=b"{}"))
        session.flush()
        session.add(OciManifest(repository="pushed", digest=digest, subject=about, needs=[]))
        session.flush()
        session.add(OciTag(repository="pushed", digest=digest, tag="mine"))
    assert migrate.upgrade(Settings(database_url=database_url)) == HEAD
    longer = f"sha512:{'c' * 128}"
    with db.write() as session:
        tag = session.get_one(OciTag, ("pushed", "mine"))
        manifest = session.get_one(OciManifest, ("pushed", tag.digest))
        assert (manifest.subject, manifest.needs) == (about, [])
        assert session.get_one(OciDocument, tag.digest).body == b"{}"
        session.add(OciDocument(digest=longer, media_type="a/b", body=b"{}"))
        session.flush()
        session.add(OciManifest(repository="pushed", digest=longer, subject=longer, needs=[]))
    with pytest.raises(IntegrityError), db.write() as session:
        session.add(OciTag(repository="pushed", digest=f"sha512:{'d' * 128}", tag="dangling"))
