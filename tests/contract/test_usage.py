"""What takes disk space, and the rules of what is kept, over REST and on the command line."""

from __future__ import annotations

import json
import os
import time

import pytest
from typer.testing import CliRunner

from farm.cli import app, du, exits, retention
from farm.client import Farm
from farm.database.tables import Artifact
from tests.contract.conftest import OverTheApi


@pytest.fixture
def run(api, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    for command in (du, retention):
        monkeypatch.setattr(command, "connect", lambda _url: farm)
    return lambda *words: CliRunner().invoke(app, list(map(str, words)))


def test_each_file_counts_once_by_kind_and_for_each_model_that_names_it(api, made, store):
    made()
    made(model="twin")
    api.upload(b"nobody's")
    found = api.get("/v1/usage").json()
    on_disk = {file.digest: file.bytes for file in store.blobs()}
    assert (found["files"], found["bytes"]) == (len(on_disk), sum(on_disk.values()))
    assert {kind: files["bytes"] for kind, files in found["kinds"].items() if files["files"]} == {
        "sources": 7,
        "engines": 7,
        "reports": 7,
        "intermediates": 14,
        "unreferenced": 8,
    }
    assert sum(files["bytes"] for files in found["kinds"].values()) == found["bytes"]
    assert [(one["model"], one["bytes"], one["shared_bytes"]) for one in found["models"]] == [
        ("digits", 35, 35),
        ("twin", 35, 35),
    ]
    assert found["free_bytes"] > 0
    assert found["gc"] == {"files": 0, "bytes": 0}
    alone = api.get("/v1/usage", params={"model": "TWIN"}).json()
    assert [one["model"] for one in alone["models"]] == ["twin"]
    assert api.get("/v1/usage", params={"model": "none"}).status_code == 404


def test_what_gc_would_free_and_unfinished_uploads_are_told(api, db, store, run):
    digest = api.upload(b"700 MB")
    old = time.time() - 10 * 86400
    os.utime(store.place(digest), (old, old))
    with db.write() as session:
        row = session.get(Artifact, digest)
        row.created_at = row.created_at.replace(year=2020)
    (store.root / "incoming" / "tmp1").write_bytes(b"half of it")
    found = api.get("/v1/usage").json()
    assert found["gc"] == {"files": 1, "bytes": 6}
    assert found["interrupted_uploads"] == {"files": 1, "bytes": 10}
    told = run("du").stdout
    assert "farm gc would free 6 B now" in told
    assert "unfinished uploads: 1 (10 B)" in told


def test_du_shows_kinds_and_models_and_one_model_alone(run, made):
    made()
    told = run("du")
    assert told.exit_code == exits.OK, told.output
    lines = [" ".join(line.split()) for line in told.stdout.splitlines()]
    assert "intermediates 2 14 B" in lines
    assert "total 5 35 B" in lines
    assert "digits 35 B – sources 7 B, engines 7 B, reports 7 B, intermediates 14 B" in lines
    assert any(line.startswith("free on the store's disk: ") for line in lines)
    assert "total" not in run("du", "digits").stdout
    assert json.loads(run("du", "--json").stdout)["files"] == 5


def test_a_rule_is_set_changed_and_reset_on_the_command_line(run, made):
    made()
    assert "all of digits is kept, by the farm's rule" in run("retention", "digits").stdout
    assert "the rules let nothing go" in run("retention").stdout
    run("retention", "digits", "--engines", "90d", "--newest", "1")
    told = run("retention", "digits", "--intermediates", "12h").stdout
    assert "other engines go after 90 days without a pull" in told
    assert "intermediates go 12 h after the last build" in told
    assert "version 1 is kept: among the 1 newest" in told
    told = run("retention", "digits", "--engines", "1s").stdout
    assert "other engines go after 1 s without a pull" in told
    assert "without a pull" not in run("retention", "digits", "--engines", "Never").stdout
    shown = json.loads(run("retention", "digits", "--json").stdout)
    assert shown["rule"] == {
        "history": 1,
        "newest": 1,
        "engines_days": None,
        "intermediates_days": 0.5,
    }
    assert "by the farm's rule" in run("retention", "digits", "--reset").stdout


def test_what_the_rules_let_go_is_shown_and_goes_only_when_applied(run, made, api):
    made()
    run("retention", "digits", "--engines", "0d", "--newest", "0")
    told = run("retention").stdout
    assert "engines of digits@1" in told
    assert "to delete it now: farm retention --apply" in told
    assert len(api.get("/v1/models/digits/engines").json()["items"]) == 1
    done = json.loads(run("retention", "--apply", "--json").stdout)
    assert [one["deletion"]["what"] for one in done["items"]] == ["engines of digits@1"]
    assert api.get("/v1/models/digits/engines").json()["items"] == []


@pytest.mark.parametrize(
    "words",
    [
        ("--engines", "90d"),
        ("--reset",),
        ("digits", "--apply"),
        ("digits", "--reset", "--newest", "1"),
        ("digits", "--engines", "soon"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(run, made, words):
    made()
    refused = run("retention", *words)
    assert refused.exit_code == exits.USAGE
    assert "hint: " in refused.stderr


def test_an_engine_counts_as_pulled_when_its_bytes_are_sent(api, made):
    engine = made()
    pulled = api.app.state.services.pulled
    assert api.get(f"/v1/engines/{engine}").status_code == 200
    assert pulled._new == {}
    assert api.get(f"/v1/engines/{engine}/content").status_code == 200
    assert set(pulled._new) == {engine}
