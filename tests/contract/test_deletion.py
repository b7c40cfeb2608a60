"""Deletion over REST and on the command line, with the files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from farm.cli import app, delete, exits
from farm.client import Farm
from farm.database.tables import Artifact
from farm.specs.scopes import Scope
from tests.contract.conftest import Api, OverTheApi
from tests.keys import a_key

VERSION = "/v1/models/digits/versions/1"


@pytest.fixture
def run(api, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    monkeypatch.setattr(delete, "connect", lambda _url: farm)
    return lambda *words, **more: CliRunner().invoke(app, ["delete", *map(str, words)], **more)


def files(store) -> set[str]:
    return {file.digest for file in store.blobs()}


def test_a_deleted_version_frees_its_files_at_once(api, store, made):
    made()
    assert len(files(store)) == 5
    told = api.request("DELETE", VERSION, params={"dry_run": True}).json()
    assert len(files(store)) == 5
    done = api.request("DELETE", VERSION).json()
    assert done == told | {"dry_run": False, "removed_bytes": told["freed_bytes"]}
    assert {file["digest"] for file in done["files"]}.isdisjoint(files(store))
    assert files(store) == set()
    assert api.get("/v1/models/digits").status_code == 404
    [build] = api.get("/v1/builds", params={"model": "digits"}).json()["items"]
    assert (build["state"], build["version"]) == ("succeeded", 1)
    assert api.get(f"/v1/builds/{build['id']}/events").status_code == 200


def test_what_another_shares_stays_on_the_disk(api, store, made):
    made()
    twin = made(model="twin")
    done = api.request("DELETE", "/v1/models/digits").json()
    assert (done["freed_bytes"], done["removed_bytes"]) == (0, 0)
    assert len(files(store)) == 5
    assert api.get(f"/v1/engines/{twin}/content").status_code == 200
    assert api.request("DELETE", "/v1/models/twin").json()["removed_bytes"] > 0
    assert files(store) == set()


def test_an_aliased_version_is_refused_with_the_aliases_names(api, made):
    engine = made()
    assert api.request("PUT", "/v1/models/digits/aliases/prod", json={"version": 1}).is_success
    for path in (VERSION, "/v1/models/digits", f"/v1/engines/{engine}"):
        answer = api.request("DELETE", path)
        assert answer.status_code == 409
        assert "prod names digits@1: move it first" in answer.json()["detail"]
        told = api.request("DELETE", path, params={"dry_run": True})
        assert told.status_code == 200
        assert told.json()["refused"] == ["prod names digits@1: move it first, or delete it"]
    assert api.request("DELETE", f"{VERSION}/intermediates").is_success


def test_an_upload_is_deleted_at_once_by_who_uploaded_it(api, db, store):
    mine = Api(api.app, a_key(db, Scope.SUBMIT, name="ci"))
    digest = api.upload(b"a mistake of 700 MB")
    refused = mine.request("DELETE", f"/v1/blobs/{digest}")
    assert refused.status_code == 403
    assert refused.json()["detail"] == f"tests uploaded {digest}"
    assert store.has(digest)
    own = mine.upload(b"the job's")
    assert mine.request("DELETE", f"/v1/blobs/{own}").json()["uploaded_by"] == "ci"
    done = api.request("DELETE", f"/v1/blobs/{digest}")
    assert done.json() == {"digest": digest, "bytes": 19, "uploaded_by": "tests"}
    assert files(store) == set()
    assert api.request("DELETE", f"/v1/blobs/{digest}").status_code == 404
    assert api.upload(b"a mistake of 700 MB") == digest


def test_an_upload_that_is_in_use_is_refused_with_what_uses_it(api, made, store):
    made()
    [source] = [f for f in files(store) if api.get(f"/v1/blobs/{f}/uses").json()["sources"]]
    answer = api.request("DELETE", f"/v1/blobs/{source}")
    assert answer.status_code == 409
    assert "source of digits@1" in answer.json()["detail"]
    assert store.has(source)


def test_an_upload_that_is_put_again_meanwhile_stays(api, db, store):
    digest = api.upload(b"wanted again")
    with db.write() as session:
        row = session.get(Artifact, digest)
        row.created_at = row.created_at.replace(year=2020)
    answer = api.request("DELETE", f"/v1/blobs/{digest}")
    assert (answer.status_code, store.has(digest)) == (409, True)
    assert "is being uploaded again" in answer.json()["detail"]


def test_a_script_has_to_say_yes_after_a_look(run, made):
    made()
    refused = run("digits@1")
    assert refused.exit_code == exits.USAGE
    assert "pass --yes" in refused.stderr
    told = run("digits@1", "--dry-run")
    assert "would delete digits@1: engines: 1, jobs: 4, versions: 1; 5 files" in told.stdout
    assert "to delete it: farm delete digits@1" in told.stdout
    done = run("digits@1", "--yes")
    assert done.exit_code == exits.OK, done.output
    assert "deleted digits@1: " in done.stdout
    assert "5 files" in done.stdout


def test_the_command_takes_engines_models_intermediates_and_uploads(run, api, made):
    engine = made()
    between = json.loads(run("digits@1", "--intermediates", "--yes", "--json").stdout)
    assert between["rows"] == {"jobs": 2}
    refused = run(engine, "--intermediates", "--yes")
    assert (refused.exit_code, "name its version" in refused.stderr) == (exits.USAGE, True)
    assert json.loads(run(engine, "--yes", "--json").stdout)["rows"] == {"engines": 1, "jobs": 2}
    assert json.loads(run("digits", "--yes", "--json").stdout)["versions"] == ["digits@1"]
    digest = api.upload(b"a mistake")
    assert "uploaded by tests" in run(digest, "--yes").stdout
    assert run("digits", "--yes").exit_code == exits.NOT_FOUND


@pytest.mark.parametrize(("said", "stays"), [("n\n", True), ("y\n", False)])
def test_a_person_is_shown_what_goes_and_asked(run, api, made, monkeypatch, said, stays):
    made()
    monkeypatch.setattr(delete, "_is_asked", lambda: True)
    asked = run("digits@1", input=said)
    assert "5 files" in asked.stdout
    assert "Delete digits@1?" in asked.stderr
    assert (api.get("/v1/models/digits").status_code == 200) is stays
