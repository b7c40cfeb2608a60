"""History that is old goes by `farm gc`, which says before what would go."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from farm.cli import app, gc
from farm.client import Farm
from farm.database.base import now
from farm.database.tables import Build, Job
from farm.settings import Settings
from tests.contract.conftest import OverTheApi, request


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, keep_builds_days=30)


@pytest.fixture
def run(api, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    monkeypatch.setattr(gc, "connect", lambda _url: farm)
    return lambda *words: CliRunner().invoke(app, ["gc", *words])


def test_gc_forgets_old_builds_and_its_dry_run_says_how_many(api, db, run):
    wanted = request(api)
    old = []
    for _ in range(2):
        build = api.post("/v1/builds", json=wanted).json()
        api.post(f"/v1/builds/{build['id']}/cancel")
        old.append(build)
    with db.write() as session:
        for table in (Build, Job):
            ended = now() - timedelta(days=31)
            session.execute(update(table).values(finished_at=ended))
    jobs = len(old[0]["jobs"])
    told = run("--dry-run").stdout
    assert f"would forget 1 build, {jobs} jobs" in told
    assert "to remove them: farm gc --older-than 24h" in told
    assert api.get(f"/v1/builds/{old[0]['id']}").status_code == 200
    assert f"forgot 1 build, {jobs} jobs" in run().stdout
    assert api.get(f"/v1/builds/{old[0]['id']}").status_code == 404
    assert api.get(f"/v1/builds/{old[1]['id']}").status_code == 200
    assert json.loads(run("--json").stdout)["history"] == {
        "events": 0,
        "logs": 0,
        "samples": 0,
        "builds": 0,
        "jobs": 0,
    }
    assert "forg" not in run().stdout
