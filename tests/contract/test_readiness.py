"""``/readyz`` says what is wrong, and server commands say it before they start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from farm.api import readiness
from farm.daemon import gc
from farm.database.migrate import newest_schema, require_schema, upgrade
from farm.database.session import Database
from farm.errors import (
    Conflict,
    DatabaseDamaged,
    DatabaseUnavailable,
    InvalidRequest,
    SchemaOutdated,
    StorageFull,
)
from farm.local import preflight
from farm.settings import Settings
from farm.store import proof
from farm.store.local import RESERVE_BYTES, LocalStore


@pytest.fixture
def services(api):
    services = api.app.state.services
    proof.adopt(services.db, services.store)
    return services


@pytest.fixture
def broker(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        monkeypatch.setattr(Settings, "broker", property(lambda _: url))
        yield server


def test_a_farm_with_all_it_needs_is_ready(api, services, broker):
    answer = api.get("/readyz")
    assert answer.status_code == 200
    parts = ("database", "schema", "store", "disk", "broker", "queues")
    assert answer.json() == {"status": "ready", "checks": dict.fromkeys(parts, "ok")}


def test_a_broker_that_is_away_is_told_and_submissions_are_taken(api, services, broker):
    broker.close()
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "no broker answers at 127.0.0.1" in answer.json()["checks"]["broker"]


@pytest.mark.parametrize("part", ["schema", "store", "disk"])
def test_what_keeps_it_from_work_is_named(api, services, broker, monkeypatch, part):
    if part == "schema":
        with services.db.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    elif part == "store":
        (services.store.root / "id").unlink()
    else:
        monkeypatch.setattr(readiness, "RESERVE_BYTES", 2**80)
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["code"] == "not-ready"
    assert answer.json()["detail"].startswith(f"{part}: ")
    assert {"schema": "farm db upgrade", "store": "FARM_STORE", "disk": "farm gc"}[part] in (
        answer.json()["detail"]
    )


def test_a_schema_that_is_older_or_newer_or_missing_is_refused_with_what_to_do(api, settings):
    db = Database(settings.database)
    require_schema(db)
    for found, what, hint in (
        ("0001", f"schema is 0001, but this farm needs {newest_schema()}", "farm db upgrade"),
        ("9999", "from a newer farm", "update this machine"),
    ):
        with db.write() as session:
            session.execute(text(f"UPDATE alembic_version SET version_num = '{found}'"))
            session.execute(text("UPDATE schema_floor SET revision = '9999'"))
        with pytest.raises(SchemaOutdated, match=what) as refused:
            preflight.require_database(settings)
        assert hint in refused.value.hint
    db.dispose()


def test_a_table_that_is_missing_says_farm_db_upgrade(tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    with pytest.raises(SchemaOutdated) as refused, db.read() as session:
        session.execute(text("SELECT * FROM jobs"))
    assert "farm db upgrade" in refused.value.hint
    db.dispose()


@pytest.mark.parametrize("keep", [0.5, 0.05], ids=["half", "its beginning"])
def test_a_truncated_sqlite_is_told_as_such(tmp_path, keep):
    settings = Settings(home=tmp_path)
    upgrade(settings)
    file = tmp_path / "farm.db"
    for log in tmp_path.glob("farm.db-*"):
        log.unlink()
    os.truncate(file, int(file.stat().st_size * keep) // 512 * 512 + 100)
    with pytest.raises(DatabaseDamaged, match="damaged") as told:
        upgrade(settings)
    assert "backup" in told.value.hint


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root@localhost/farm", "Postgres and SQLite, not mysql"),
        ("no address", "isn't a valid URL"),
    ],
)
def test_an_address_of_no_database_of_ours_is_told(url, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        Database(url)
    assert "postgresql://" in refused.value.hint


def test_postgres_is_postgresql():
    url = Database("postgres://farm:secret@db:5432/farm").url
    assert (url.get_backend_name(), url.host) == ("postgresql", "db")


def test_a_postgres_that_refuses_is_not_waited_for(database_url):
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite lets everybody in")
    url = Database(database_url).url
    there = Settings(database_url=url.set(database="nowhere").render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnavailable, match="does not exist") as refused:
        preflight.require_database(there)
    assert "createdb" in refused.value.hint


def test_a_postgres_that_is_away_is_waited_for():
    preflight.require_database(Settings(database_url="postgresql://farm@127.0.0.1:1/farm"))


def test_a_port_that_another_farm_shares_out_is_taken(monkeypatch):
    monkeypatch.setattr(preflight, "_PORT_S", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} is taken on 127.0.0.1"):
            preflight.require_port("127.0.0.1", port)
    preflight.require_port("127.0.0.1", port)


@pytest.mark.parametrize("command", [["api", "--port", "1"], ["worker"], ["db", "upgrade"]])
def test_a_server_command_answers_with_an_error_and_a_hint(tmp_path, command):
    (tmp_path / "farm.db").write_bytes(b"this is no database, and never was one" * 100)
    ended = subprocess.run(
        [sys.executable, "-m", "farm", *command],
        env=os.environ | {"FARM_HOME": str(tmp_path), "FARM_DATABASE_URL": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stderr.startswith("error: the database's file is damaged"), ended.stderr
    assert "hint: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    size = 6 * RESERVE_BYTES
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 2**16):
                pass
        except OSError:
            return


def test_gc_works_on_a_full_disk(small_disk):
    settings = Settings(home=small_disk)
    upgrade(settings)
    db, store = Database(settings.database), LocalStore(settings.store_dir)
    store.keep_reserve()
    garbage = small_disk / "garbage"
    garbage.write_bytes(b"g" * 3 * RESERVE_BYTES)
    digest = store.take(garbage).digest
    os.utime(store.place(digest), (0, 0))
    _fill(small_disk)
    with pytest.raises(StorageFull):
        store.try_to_write()
    report = gc.collect(db, store, older_than_s=0)
    assert [blob.digest for blob in report.removed] == [digest]
    store.try_to_write()
    assert (store.root / "reserve").stat().st_size == RESERVE_BYTES
    db.dispose()
