"""Aliases over REST: scopes, ETags, errors."""

from __future__ import annotations

import pytest

from farm.api.app import create_app
from farm.database.session import Database
from farm.specs.scopes import Scope
from tests.contract.conftest import Api
from tests.contract.test_api import problem, submit
from tests.keys import a_key
from tests.ledger import Ledger

PROD = "/v1/models/digits/aliases/prod"


@pytest.fixture
def ledger(settings):
    db = Database(settings.database)
    yield Ledger(db)
    db.dispose()


@pytest.fixture
def versions(api, ledger):
    """Two versions: the first for two GPUs, the second for one."""
    submit(api, api.upload(b"a model"), targets=["sm_75", "sm_89"])
    submit(api, api.upload(b"another"), targets=["sm_89"])
    ledger.run_all()


def test_a_version_is_promoted_pulled_and_rolled_back(api, versions):
    made = api.request("PUT", PROD, json={"version": 1, "note": "first"}).json()
    assert (made["alias"]["version"], made["before"], made["left_out"]) == (1, None, [])
    pulled = api.get("/v1/models/digits/engines/sm_75").json()
    assert (pulled["engine"]["version"], "is prod" in pulled["why"]) == (1, True)
    refused = problem(api.request("PUT", PROD, json={"version": 2}), 409)
    assert "sm_75: it has no engine" in refused["detail"]
    assert "--partial" in refused["hint"]
    made = api.request("PUT", PROD, json={"version": 2, "partial": True}).json()
    assert made["left_out"][0]["gpu"] == "sm_75"
    assert "--version 1" in problem(api.get("/v1/models/digits/engines/sm_75"), 404)["hint"]
    assert api.post(f"{PROD}/rollback", json={"note": "back"}).json()["version"] == 1
    moves = api.get(f"{PROD}/history", params={"limit": 2}).json()
    assert [m["action"] for m in moves["items"]] == ["rollback", "promote"]
    rest = api.get(f"{PROD}/history", params={"cursor": moves["cursor"]}).json()
    assert [(m["note"], m["revision"]) for m in rest["items"]] == [("first", 1)]
    assert rest["cursor"] is None
    [listed] = api.get("/v1/models/digits/aliases").json()["items"]
    assert listed == api.get("/v1/models/digits").json()["aliases"][0]
    audited = [e["action"] for e in api.get("/v1/audit").json()["items"]]
    assert audited[:3] == ["rollback", "promote", "promote"]


def test_the_etag_guards_a_move(api, versions):
    made = api.request("PUT", PROD, json={"version": 1}, headers={"If-Match": '"0"'})
    assert made.status_code == 200
    etag = api.get(PROD).headers["ETag"]
    assert etag == '"1"'
    asked = {"version": 2, "partial": True}
    problem(api.request("PUT", PROD, json=asked, headers={"If-Match": '"0"'}), 409)
    assert api.request("PUT", PROD, json=asked, headers={"If-Match": etag}).status_code == 200
    problem(api.request("DELETE", PROD, headers={"If-Match": etag}), 409)
    problem(api.request("DELETE", PROD, headers={"If-Match": "yesterday"}), 422)
    assert api.request("DELETE", PROD, headers={"If-Match": '"2"'}).status_code == 204
    problem(api.get(PROD), 404)


def test_a_dry_run_moves_nothing_and_is_not_audited(api, versions):
    said = api.request("PUT", f"{PROD}?dry_run=true", json={"version": 2}).json()
    assert (said["alias"], said["version"]) == (None, 2)
    problem(api.get(PROD), 404)
    assert "promote" not in [e["action"] for e in api.get("/v1/audit").json()["items"]]


@pytest.mark.parametrize("alias", ["v7", "7", "prod_", "a" * 41, "p%20q"])
def test_a_name_that_could_be_a_version_is_refused(api, versions, alias):
    path = f"/v1/models/digits/aliases/{alias}"
    problem(api.request("PUT", path, json={"version": 1}), 422)


def test_a_key_that_may_only_submit_moves_no_alias(api, versions):
    db = api.app.state.services.db
    body = {"version": 1}
    asked = ((Scope.SUBMIT, 403), (Scope.READ, 403), (Scope.PROMOTE, 200))
    callers = [(Api(api.app, a_key(db, scope)), status) for scope, status in asked]
    api.app.state.services.ring.forget()
    for caller, status in callers:
        assert caller.request("PUT", PROD, json=body).status_code == status


def test_a_protected_alias_takes_an_administrator(settings, versions):
    protected = settings.model_copy(update={"protected_aliases": ("prod",)})
    app = create_app(protected)
    db = app.state.services.db
    promoter, admin = Api(app, a_key(db, Scope.PROMOTE)), Api(app, a_key(db, Scope.ADMIN))
    refused = problem(promoter.request("PUT", PROD, json={"version": 1}), 403)
    assert "protected" in refused["detail"]
    canary = "/v1/models/digits/aliases/canary"
    assert promoter.request("PUT", canary, json={"version": 1}).status_code == 200
    assert admin.request("PUT", PROD, json={"version": 1}).status_code == 200
    for method, path in (("POST", f"{PROD}/rollback"), ("DELETE", PROD)):
        problem(promoter.request(method, path, json={}), 403)
    db.dispose()


def test_a_version_and_an_engine_are_yanked_and_restored(api, versions):
    path = "/v1/models/digits/versions/2/yank"
    told = api.post(path, json={"reason": "it guesses"}).json()
    assert told["versions"][1]["yanked"] == "it guesses"
    pulled = api.get("/v1/models/digits/engines/sm_89").json()["engine"]
    assert pulled["version"] == 1
    problem(api.post(path, json={"reason": "  "}), 422)
    problem(api.post("/v1/models/digits/versions/9/yank", json={"reason": "x"}), 404)
    of_engine = f"/v1/engines/{pulled['id']}/yank"
    assert api.post(of_engine, json={"reason": "no"}).json()["yanked"] == "no"
    assert api.get(f"/v1/engines/{pulled['id']}").json()["yanked"] == "no"
    assert api.request("DELETE", of_engine).json()["yanked"] is None
    assert api.request("DELETE", path).json()["versions"][1]["yanked"] is None
    audited = [e["action"] for e in api.get("/v1/audit").json()["items"]]
    assert audited[:4] == ["unyank", "unyank", "yank", "yank"]


def test_versions_are_compared_over_rest(api, versions):
    api.request("PUT", PROD, json={"version": 1})
    found = api.get("/v1/models/digits/compare", params={"a": "prod", "b": "v2"}).json()
    assert (found["a"], found["b"]) == (1, 2)
    assert {one["gpu"]: one["b"] is None for one in found["gpus"]} == {
        "sm_75": True,
        "sm_89": False,
    }
    problem(api.get("/v1/models/digits/compare", params={"a": "prod", "b": "9"}), 404)
    problem(api.get("/v1/models/digits/compare", params={"a": "prod", "b": "prod!"}), 422)


def test_what_a_file_is_to_the_farm_is_told(api, ledger):
    source, data = api.upload(b"a model"), api.upload(b"samples")
    calibration = {"digest": data}
    build = submit(api, source, precisions=["int8"], calibration=calibration)
    ledger.run_all()
    api.request("PUT", PROD, json={"version": 1})
    engine = api.get("/v1/models/digits/engines/sm_89").json()["engine"]
    uses = api.get(f"/v1/blobs/{engine['digest']}/uses").json()
    assert [one["id"] for one in uses["engines"]] == [engine["id"]]
    assert uses["aliases"] == {"digits@1": ["prod"]}
    [of] = api.get(f"/v1/blobs/{source}/uses").json()["sources"]
    assert of == {"model": "digits", "version": 1, "aliases": ["prod"], "yanked": None}
    [given] = api.get(f"/v1/blobs/{data}/uses").json()["data"]
    assert (given["build"], given["role"]) == (build["id"], "calibration")
    unused = api.get(f"/v1/blobs/{api.upload(b'other')}/uses").json()
    assert (unused["engines"], unused["sources"], unused["data"]) == ([], [], [])
    assert "another farm" in problem(api.get(f"/v1/blobs/sha256:{'0' * 64}/uses"), 404)["hint"]


def test_a_name_that_cannot_be_an_alias_is_refused_in_words(api, versions):
    told = problem(api.request("PUT", "/v1/models/digits/aliases/7", json={"version": 1}), 422)
    assert told["detail"].startswith("alias: '7' can't be an alias: use a lower-case letter")
