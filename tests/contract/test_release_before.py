"""A farm upgrades, and serves what the one before has stored."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from farm.database import migrate
from farm.database.session import Database
from farm.settings import Settings
from tests.contract.conftest import Api
from tests.integration.test_schema import run

pytestmark = pytest.mark.services

#: As the farm before this one wrote it: two precisions for a GPU and for CPUs, and a build that waits.
STORED = json.loads((Path(__file__).parents[1] / "data" / "schema-0012.json").read_text())
SCHEMA = "0012"


@pytest.fixture
def upgraded(settings: Settings, api: Api) -> Api:
    """The API of a farm that was of that schema a moment ago, with its engines' bytes."""
    db: Database = api.app.state.services.db
    run(db, command.downgrade, SCHEMA)
    fill(db)
    assert migrate.upgrade(settings) > SCHEMA
    for job in STORED["jobs"]:
        if job["kind"] == "build":
            api.upload(content_of(job["title"]))
    return api


def content_of(title: str) -> bytes:
    return f"engine {title}".encode()


def fill(db: Database) -> None:
    tables = sa.MetaData()
    tables.reflect(db.engine)
    with db.engine.begin() as connection:
        for table in tables.sorted_tables:
            rows = [as_stored(table, row) for row in STORED.get(table.name, [])]
            if rows:
                connection.execute(sa.insert(table), rows)
            column = table.columns.get("id")
            if (
                db.engine.dialect.name == "postgresql"
                and rows
                and isinstance(rows[0].get("id"), int)
            ):
                newest = sa.select(sa.func.max(column)).scalar_subquery()
                name = sa.func.pg_get_serial_sequence(table.name, "id")
                connection.execute(sa.select(sa.func.setval(name, newest)))


def as_stored(table: sa.Table, row: dict) -> dict:
    def value(name: str, found: object) -> object:
        kind = table.columns[name].type
        if isinstance(kind, sa.DateTime) and isinstance(found, str):
            at = datetime.fromisoformat(found)
            return at.replace(tzinfo=UTC) if kind.timezone else at
        return sa.null() if found is None and isinstance(kind, sa.JSON) else found

    return {name: value(name, found) for name, found in row.items()}


def test_its_engines_are_listed_matched_and_pulled(upgraded: Api) -> None:
    listed = upgraded.get("/v1/models/digits/engines").json()["items"]
    assert {(one["precision"], one["gpu"], one["state"]) for one in listed} == {
        ("fp16", "sm_89", "ready"),
        ("int8", "sm_89", "ready"),
        ("fp16", "cpu", "ready"),
        ("int8", "cpu", "doubtful"),
    }
    match = upgraded.get("/v1/models/digits/engines/rtx-4090?precision=int8").json()
    content = upgraded.get(f"/v1/engines/{match['engine']['id']}/content")
    assert content.content == content_of("build digits:int8@sm_89")
    assert match["engine"]["digest"] == f"sha256:{hashlib.sha256(content.content).hexdigest()}"
    manifest = upgraded.get(f"/v1/engines/{match['engine']['id']}/manifest").json()
    recipe = manifest["provenance"]["build"]["recipe"]
    assert recipe["tools"] == match["engine"]["toolchain"]
    assert (
        len(manifest["provenance"]["measure"]["recipe"]["params"]["fixed_inputs"]["scale"]) == 400
    )


def test_what_it_built_is_built_no_second_time(upgraded: Api) -> None:
    [build] = [one for one in STORED["builds"] if one["state"] == "succeeded"]
    request = {name: value for name, value in build["request"].items() if value is not None}
    announce(upgraded)
    again = upgraded.post("/v1/builds", json=request)
    assert again.status_code in (200, 201, 202), again.text
    view = again.json()
    ran = {job["title"] for job in view["jobs"] if job["reuse"] != "cached"}
    # Calibration has changed since, and with it the int8 graph; so has what a measurement judges.
    of_int8 = {"calibrate digits:int8"} | {
        f"{kind} digits:int8{on}"
        for kind, on in (
            ("build", "@sm_89"),
            ("measure", ""),
            ("build", "@cpu"),
            ("measure", "@cpu"),
        )
    }
    assert ran == of_int8 | {"measure digits:fp16", "measure digits:fp16@cpu"}
    assert len(view["jobs"]) > len(ran)


def test_its_builds_go_on(upgraded: Api) -> None:
    [build] = [one for one in STORED["builds"] if one["state"] == "queued"]
    view = upgraded.get(f"/v1/builds/{build['id']}").json()
    assert view["state"] == "queued"
    assert upgraded.get(f"/v1/builds/{build['id']}/explain").status_code == 200
    assert upgraded.post(f"/v1/builds/{build['id']}/cancel").json()["state"] == "cancelled"


def announce(api: Api) -> None:
    """A worker with the tools that the farm before had."""
    from tests.ledger import Ledger

    Ledger(api.app.state.services.db).worker()
