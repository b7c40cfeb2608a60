"""The audit: each change leaves a row, in its own transaction, that nobody can rewrite."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError

from farm.api import access
from farm.builds import cancel
from farm.client import Farm
from farm.daemon import gc
from farm.database.tables import Artifact, AuditRow, Build
from farm.errors import FarmError
from farm.specs.scopes import Scope
from farm.specs.states import BuildState
from farm.trust import audit, credentials, keys, plugins
from farm.trust.callers import THE_FARM
from tests.contract.ages import age
from tests.contract.conftest import Api
from tests.contract.files import Files
from tests.contract.registry import Registry, digest_of
from tests.contract.test_key_clients import Bridge
from tests.keys import a_key
from tests.ledger import Ledger

REQUEST = {
    "model": "digits",
    "precisions": ["fp16"],
    "targets": ["tensorrt-rtx:sm_89"],
}


@pytest.fixture
def services(api):
    return api.app.state.services


@pytest.fixture
def db(services):
    return services.db


def rows(db, action: str | None = None) -> list[AuditRow]:
    with db.read() as session:
        return list(audit.page(session, action=action, limit=1000))


def submitted(api) -> str:
    source = {"digest": api.upload(b"a model"), "format": "onnx"}
    answer = api.post("/v1/builds", json=REQUEST | {"source": source})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


# What is written


def test_a_row_says_who_did_what_from_where_and_when(api, db):
    build = submitted(api)
    headers = {"Farm-Client": "me@laptop"}
    assert api.post(f"/v1/builds/{build}/cancel", headers=headers).status_code == 200
    [row] = api.get("/v1/audit", params={"action": "cancel"}).json()["items"]
    at = row.pop("at")
    assert at.endswith("Z")
    assert row.pop("id")
    assert row == {
        "key_id": credentials.id_of(api.key),
        "who": "tests",
        "label": "me@laptop",
        "address": "127.0.0.1",
        "action": "cancel",
        "object": build,
        "details": None,
    }


def _upload(api, _db, _monkeypatch):
    return "upload", api.upload(b"some bytes")


def _submit(api, _db, _monkeypatch):
    return "submit", submitted(api)


def _bench(api, _db, _monkeypatch):
    submitted(api)
    asked = {"targets": ["sm_89"], "wait_for_workers": True}
    answer = api.post("/v1/models/digits/bench", json=asked)
    assert answer.status_code == 202, answer.text
    return "submit", answer.json()["id"]


def _cancel(api, _db, _monkeypatch):
    build = submitted(api)
    assert api.post(f"/v1/builds/{build}/cancel").is_success
    return "cancel", build


def _retry(api, _db, _monkeypatch):
    _, build = _cancel(api, _db, _monkeypatch)
    assert api.post(f"/v1/builds/{build}/retry").is_success
    return "retry", build


#: An archive of no arrays, for an engine of no inputs.
_NO_INPUTS = b"PK\x05\x06" + bytes(18)


def _infer(api, db, _monkeypatch):
    ledger = Ledger(db)
    ledger.worker()
    ledger.submit(targets=["cpu"], source={"digest": api.upload(b"a model"), "format": "onnx"})
    ledger.run_all()
    engine = api.get("/v1/models/digits/engines").json()["items"][0]["id"]
    asked = {"engine": engine, "inputs": api.upload(_NO_INPUTS)}
    for _ in range(2):  # the second joins the first
        answer = api.post("/v1/infer", json=asked)
        assert answer.status_code == 202, answer.text
    return "infer", str(answer.json()["id"])


def _cancel_inference(api, db, monkeypatch):
    _, inference = _infer(api, db, monkeypatch)
    for _ in range(2):  # the second finds nothing to cancel
        assert api.request("DELETE", f"/v1/infer/{inference}").is_success
    return "infer.cancel", inference


ALIAS = "/v1/models/{model}/aliases/{alias}"
_PROD = "/v1/models/digits/aliases/prod"
_RETENTION = "/v1/models/digits/retention"
_VERSION = "/v1/models/digits/versions/1/yank"


def _published(api, db) -> str:
    """An engine's id."""
    submitted(api)
    Ledger(db).run_all()
    return api.get("/v1/models/digits/engines").json()["items"][0]["id"]


def _promote(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):  # the second moves nothing
        assert api.request("PUT", _PROD, json={"version": 1}).is_success
    return "promote", "digits@prod"


def _rollback(api, db, monkeypatch):
    _promote(api, db, monkeypatch)
    source = {"digest": api.upload(b"another"), "format": "onnx"}
    assert api.post("/v1/builds", json=REQUEST | {"source": source}).is_success
    Ledger(db).run_all()
    assert api.request("PUT", _PROD, json={"version": 2}).is_success
    assert api.post(f"{_PROD}/rollback", json={}).is_success
    return "rollback", "digits@prod"


def _delete_alias(api, db, monkeypatch):
    _promote(api, db, monkeypatch)
    assert api.request("DELETE", _PROD).is_success
    return "unalias", "digits@prod"


def _yank_version(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):
        assert api.post(_VERSION, json={"reason": "it guesses"}).is_success
    return "yank", "digits@1"


def _restore_version(api, db, monkeypatch):
    _yank_version(api, db, monkeypatch)
    for _ in range(2):
        assert api.request("DELETE", _VERSION).is_success
    return "unyank", "digits@1"


def _yank_engine(api, db, _monkeypatch):
    engine = _published(api, db)
    for _ in range(2):
        assert api.post(f"/v1/engines/{engine}/yank", json={"reason": "no"}).is_success
    return "yank", engine


def _restore_engine(api, db, monkeypatch):
    _, engine = _yank_engine(api, db, monkeypatch)
    for _ in range(2):
        assert api.request("DELETE", f"/v1/engines/{engine}/yank").is_success
    return "unyank", engine


def _delete_engine(api, db, _monkeypatch):
    engine = _published(api, db)
    assert api.request("DELETE", f"/v1/engines/{engine}", params={"dry_run": True}).is_success
    assert api.request("DELETE", f"/v1/engines/{engine}").is_success
    return "delete", engine


def _delete_version(api, db, _monkeypatch):
    _published(api, db)
    assert api.request("DELETE", "/v1/models/digits/versions/1").is_success
    return "delete", "digits@1"


def _delete_model(api, db, _monkeypatch):
    _published(api, db)
    assert api.request("DELETE", "/v1/models/Digits").is_success
    return "delete", "digits"


def _delete_intermediates(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):  # the second finds nothing
        assert api.request("DELETE", "/v1/models/digits/versions/1/intermediates").is_success
    return "delete", "intermediates of digits@1"


def _delete_all_intermediates(api, db, _monkeypatch):
    _published(api, db)
    assert api.request("DELETE", "/v1/models/digits/intermediates").is_success
    return "delete", "intermediates of digits"


def _delete_upload(api, _db, _monkeypatch):
    digest = api.upload(b"nobody's")
    assert api.request("DELETE", f"/v1/blobs/{digest}").is_success
    return "delete", digest


def _retention(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):
        assert api.request("PUT", _RETENTION, json={"engines_days": 90}).is_success
    return "retention", "digits"


def _reset_retention(api, db, monkeypatch):
    _retention(api, db, monkeypatch)
    for _ in range(2):
        assert api.request("DELETE", _RETENTION).is_success
    return "retention.reset", "digits"


def _apply_retention(api, db, _monkeypatch):
    _published(api, db)
    assert api.request("PUT", _RETENTION, json={"engines_days": 0, "newest": 0}).is_success
    for dry_run in (True, False):
        assert api.post("/v1/retention", json={"dry_run": dry_run}).json()["items"]
    return "delete", "engines of digits@1"


def _describe_model(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):  # the second changes nothing
        changes = {"labels": {"team": "vision"}, "note": "ours"}
        assert api.request("PATCH", "/v1/models/digits", json=changes).is_success
    return "describe", "digits"


def _describe_version(api, db, _monkeypatch):
    _published(api, db)
    for _ in range(2):
        path = "/v1/models/digits/versions/1"
        assert api.request("PATCH", path, json={"labels": {"team": "vision"}}).is_success
    return "describe", "digits@1"


def _plugin(api, _db, monkeypatch):
    monkeypatch.setattr(plugins, "verified", lambda *_, **__: "a trusted key")
    digest = api.upload(b"\x7fELF library")
    signature = base64.b64encode(bytes(64)).decode()
    request = {"digest": digest, "name": "lib.so", "signature": signature}
    assert api.post("/v1/plugins", json=request).status_code == 201
    return "plugin.add", digest


def _old_upload(api, db) -> str:
    """An upload that nothing refers to, and that is old enough to go."""
    digest = api.upload(b"nobody's")
    age(api.app.state.services, digest)
    return digest


def _gc(api, db, _monkeypatch):
    _old_upload(api, db)
    report = api.post("/v1/gc", json={"older_than_s": 7200}).json()
    assert report["removed_total"] == 1
    return "gc", "1 blob"


def _scrub(api, db, _monkeypatch):
    digest = api.upload(b"right bytes")
    path = api.app.state.services.store.place(digest)
    path.chmod(0o644)
    path.write_bytes(b"wrong bytes")
    assert api.post("/v1/scrub").json()["damaged"] == [digest]
    return "condemn", digest


def _create_key(api, _db, _monkeypatch):
    made = api.post("/v1/keys", json={"name": "ci", "scopes": ["read"]}).json()
    return "key.create", made["id"]


def _revoke_key(api, _db, _monkeypatch):
    _, key_id = _create_key(api, _db, _monkeypatch)
    assert api.request("DELETE", f"/v1/keys/{key_id}").is_success
    return "key.revoke", key_id


def _limit_key(api, _db, _monkeypatch):
    _, key_id = _create_key(api, _db, _monkeypatch)
    for _ in range(2):  # the second changes nothing
        path = f"/v1/keys/{key_id}/limits"
        assert api.request("PATCH", path, json={"builds": 5}).is_success
    return "key.limits", key_id


def _create_token(api, _db, _monkeypatch):
    made = api.post("/v1/tokens", json={}).json()
    return "token.create", made["id"]


def _revoke_token(api, _db, _monkeypatch):
    _, token_id = _create_token(api, _db, _monkeypatch)
    for _ in range(2):  # the second changes nothing
        assert api.request("DELETE", f"/v1/tokens/{token_id}").is_success
    return "token.revoke", token_id


_MANIFEST = "/v2/{name:path}/manifests/{reference}"
_UPLOADS = "/v2/{name:path}/blobs/uploads/"
_UPLOAD = "/v2/{name:path}/blobs/uploads/{upload}"


def _post_blob(api, _db, _monkeypatch):
    digest = digest_of(b"pushed at once")
    path = f"/v2/pushed/blobs/uploads/?digest={digest}"
    assert api.post(path, content=b"pushed at once").status_code == 201
    return "upload", digest


def _patch_blob(api, _db, _monkeypatch):
    pushed = Registry(api, "pushed")
    answer = pushed.patch(pushed.begin(), b"pushed in parts")
    assert pushed.finish(answer.headers["location"], digest_of(b"pushed in parts")).is_success
    return "upload", digest_of(b"pushed in parts")


def _put_blob(api, _db, _monkeypatch):
    return "upload", Registry(api, "pushed").push_blob(b"pushed")


def _drop_upload(api, _db, _monkeypatch):
    location = Registry(api, "pushed").begin()
    assert api.request("DELETE", location).is_success
    return "upload.drop", f"pushed/{location.rpartition('/')[2]}"


def _uploaded_in_parts(api, content):
    begun = api.post("/v1/uploads")
    path = begun.headers["location"]
    for start in (0, 5):
        part = content[start : start + 5] if start == 0 else content[start:]
        said = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        sent = api.request("PATCH", path, content=part, headers={"Content-Range": said})
        assert sent.json()["bytes"] == start + len(part)
    assert api.request("PUT", path, params={"digest": digest_of(content)}).status_code == 201
    return "upload", digest_of(content)


def _begin_upload(api, _db, _monkeypatch):
    return _uploaded_in_parts(api, b"begun first")


def _add_to_upload(api, _db, _monkeypatch):
    return _uploaded_in_parts(api, b"added in parts")


def _end_upload(api, _db, _monkeypatch):
    return _uploaded_in_parts(api, b"ended last")


def _drop_parts(api, _db, _monkeypatch):
    path = api.post("/v1/uploads").headers["location"]
    assert api.request("DELETE", path).status_code == 204
    return "upload.drop", path.rpartition("/")[2]


def _check(api, _db, _monkeypatch):
    digest = api.upload(b"right bytes, too")
    path = api.app.state.services.store.place(digest)
    path.chmod(0o644)
    path.write_bytes(b"wrong bytes, too")
    assert api.post(f"/v1/blobs/{digest}/check").json() == {"digest": digest, "right": False}
    return "condemn", digest


def _push(api, _db, _monkeypatch):
    Registry(api, "pushed").push_image("mine")
    return "push", "pushed:mine"


def _delete_tag(api, db, monkeypatch):
    _push(api, db, monkeypatch)
    assert Registry(api, "pushed").manifest("mine", "DELETE").is_success
    return "push.delete", "pushed:mine"


def _delete_blob(api, db, monkeypatch):
    _, digest = _put_blob(api, db, monkeypatch)
    assert Registry(api, "pushed").blob(digest, "DELETE").is_success
    return "push.delete", f"pushed@{digest}"


def _mirror(api, db, _monkeypatch):
    """A copy of a version within one farm, registered as another model's."""
    submitted(api)
    Files(db, api.app.state.services.store).run_all()
    farm = Farm("http://localhost", key=api.key, transport=Bridge(api))
    copied = farm.mirror(farm.http, "digits", register=False)
    asked = {
        "repository": copied.repository,
        "digest": copied.digest,
        "farm": "http://localhost",
        "unsigned": True,
    }
    for _ in range(2):  # the second changes nothing
        answer = api.post("/v1/models/copies/mirror", json=asked)
        assert answer.is_success, answer.text
    return "mirror", "copies@1"


#: One for each operation that changes something.
def _link(api, _db, _monkeypatch):
    url = api.post("/v1/login/links").json()["url"]
    return "login.link", url.partition("link=login_")[2].partition("_")[0]


CHANGES = {
    ("POST", "/v1/blobs"): _upload,
    ("POST", "/v1/uploads"): _begin_upload,
    ("PATCH", "/v1/uploads/{upload}"): _add_to_upload,
    ("PUT", "/v1/uploads/{upload}"): _end_upload,
    ("DELETE", "/v1/uploads/{upload}"): _drop_parts,
    ("POST", "/v1/blobs/{digest}/check"): _check,
    ("POST", "/v1/builds"): _submit,
    ("POST", "/v1/models/{model}/bench"): _bench,
    ("POST", "/v1/builds/{build_id}/cancel"): _cancel,
    ("POST", "/v1/builds/{build_id}/retry"): _retry,
    ("POST", "/v1/login/links"): _link,
    ("POST", "/v1/infer"): _infer,
    ("DELETE", "/v1/infer/{inference_id}"): _cancel_inference,
    ("POST", "/v1/plugins"): _plugin,
    ("POST", "/v1/gc"): _gc,
    ("POST", "/v1/scrub"): _scrub,
    ("PUT", ALIAS): _promote,
    ("POST", f"{ALIAS}/rollback"): _rollback,
    ("DELETE", ALIAS): _delete_alias,
    ("POST", "/v1/models/{model}/versions/{version}/yank"): _yank_version,
    ("DELETE", "/v1/models/{model}/versions/{version}/yank"): _restore_version,
    ("POST", "/v1/models/{model}/mirror"): _mirror,
    ("PATCH", "/v1/models/{model}"): _describe_model,
    ("PATCH", "/v1/models/{model}/versions/{version}"): _describe_version,
    ("POST", "/v1/engines/{engine_id}/yank"): _yank_engine,
    ("DELETE", "/v1/engines/{engine_id}/yank"): _restore_engine,
    ("DELETE", "/v1/engines/{engine_id}"): _delete_engine,
    ("DELETE", "/v1/models/{model}/versions/{version}"): _delete_version,
    ("DELETE", "/v1/models/{model}"): _delete_model,
    ("DELETE", "/v1/models/{model}/versions/{version}/intermediates"): _delete_intermediates,
    ("DELETE", "/v1/models/{model}/intermediates"): _delete_all_intermediates,
    ("DELETE", "/v1/blobs/{digest}"): _delete_upload,
    ("PUT", "/v1/models/{model}/retention"): _retention,
    ("DELETE", "/v1/models/{model}/retention"): _reset_retention,
    ("POST", "/v1/retention"): _apply_retention,
    ("POST", "/v1/keys"): _create_key,
    ("DELETE", "/v1/keys/{key_id}"): _revoke_key,
    ("PATCH", "/v1/keys/{key_id}/limits"): _limit_key,
    ("POST", "/v1/tokens"): _create_token,
    ("DELETE", "/v1/tokens/{token_id}"): _revoke_token,
    ("POST", _UPLOADS): _post_blob,
    ("PATCH", _UPLOAD): _patch_blob,
    ("PUT", _UPLOAD): _put_blob,
    ("DELETE", _UPLOAD): _drop_upload,
    ("PUT", _MANIFEST): _push,
    ("DELETE", _MANIFEST): _delete_tag,
    ("DELETE", "/v2/{name:path}/blobs/{digest}"): _delete_blob,
}


def test_every_operation_that_changes_something_is_tried_here():
    changing = {one for one in access.SCOPES if one[0] not in ("GET", "HEAD")}
    assert set(CHANGES) == changing


@pytest.mark.parametrize("change", CHANGES.values(), ids=lambda change: change.__name__)
def test_each_change_leaves_one_row_with_its_key(api, db, monkeypatch, change):
    action, what = change(api, db, monkeypatch)
    [row] = rows(db, action)[:1]
    assert row.object == what
    assert (row.key_id, row.who) == (credentials.id_of(api.key), "tests")
    assert [one.object for one in rows(db, action)].count(what) == 1


def test_a_collection_of_garbage_names_what_it_removed(api, db):
    digest = _old_upload(api, db)
    api.post("/v1/gc", json={"older_than_s": 7200})
    assert rows(db, "gc")[0].details == {"digests": [digest]}


def test_what_changes_nothing_leaves_no_row(api, db):
    build = submitted(api)
    api.post(f"/v1/builds/{build}/cancel")
    _old_upload(api, db)
    before = len(rows(db))
    api.post(f"/v1/builds/{build}/cancel")  # it is
    api.post("/v1/gc", json={"dry_run": True, "older_than_s": 7200})
    api.post("/v1/builds", json=REQUEST)  # invalid
    api.post("/v1/builds/none/cancel")
    api.post("/v1/keys", json={"name": "x", "scopes": []})
    api.request("DELETE", f"/v1/keys/{credentials.id_of(api.key)}")  # the last one
    for path in ("/v1/builds", "/v1/models", "/v1/keys", "/v1/audit", "/v1/workers"):
        api.get(path)
    assert len(rows(db)) == before


def test_a_repeat_with_its_idempotency_key_leaves_no_second_row(api, db):
    source = {"digest": api.upload(b"a model"), "format": "onnx"}
    for _ in range(2):
        headers = {"Idempotency-Key": "once"}
        api.post("/v1/builds", json=REQUEST | {"source": source}, headers=headers)
    assert len(rows(db, "submit")) == 1


def test_what_a_caller_may_not_do_leaves_no_row(api, db):
    reader = Api(api.app, a_key(db, Scope.READ))
    before = len(rows(db))
    for method, path in set(CHANGES) - {("POST", "/v1/login/links")}:  # it leads to no more
        assert reader.request(method, path.replace("{", "").replace("}", "")).status_code == 403
    assert len(rows(db)) == before


# In the same transaction


def test_a_change_whose_row_cant_be_written_isnt_made(api, db, monkeypatch):
    build = submitted(api)
    key = a_key(db, Scope.READ)

    def full(*_args, **_details):
        raise FarmError("no row")

    monkeypatch.setattr(audit, "record", full)
    source = {"digest": _digest(db), "format": "onnx"}
    assert api.post("/v1/builds", json=REQUEST | {"source": source}).status_code == 500
    assert api.post(f"/v1/builds/{build}/cancel").status_code == 500
    assert api.post("/v1/blobs", content=b"others").status_code == 500
    assert api.post("/v1/keys", json={"name": "x", "scopes": ["read"]}).status_code == 500
    assert api.request("DELETE", f"/v1/keys/{credentials.id_of(key)}").status_code == 500
    with db.read() as session:
        assert session.scalars(select(Build.id)).all() == [build]
        assert session.get(Build, build).state == BuildState.QUEUED
        assert len(session.scalars(select(Artifact.digest)).all()) == 1
        assert len(keys.live(session)) == 2


def _digest(db) -> str:
    with db.read() as session:
        return session.scalars(select(Artifact.digest)).one()


def test_a_change_that_is_rolled_back_leaves_no_row(db, api):
    build = submitted(api)

    def fail(session) -> None:
        assert cancel.cancel_build(session, build)
        audit.record(session, THE_FARM, "cancel", build)
        raise RuntimeError

    with pytest.raises(RuntimeError), db.write() as session:
        fail(session)
    assert rows(db, "cancel") == []


# Never rewritten


@pytest.mark.parametrize(
    "statement",
    [
        update(AuditRow).values(who="nobody"),
        delete(AuditRow),
        text("UPDATE audit SET object = 'x' WHERE id = 1"),
        text("DELETE FROM audit WHERE id = 1"),
        text("TRUNCATE audit"),
        text("INSERT OR REPLACE INTO audit SELECT * FROM audit"),
    ],
    ids=str,
)
def test_the_database_refuses_to_change_or_delete_a_row(api, db, statement):
    submitted(api)
    only = {"TRUNCATE audit": not db.is_sqlite, "INSERT OR": db.is_sqlite}
    if not all(here for start, here in only.items() if str(statement).startswith(start)):
        pytest.skip("the other database's words")
    before = [(row.id, row.who, row.object) for row in rows(db)]
    assert before
    with pytest.raises(DBAPIError, match="only ever added to"), db.engine.begin() as connection:
        connection.execute(statement)
    assert [(row.id, row.who, row.object) for row in rows(db)] == before


# Read


def test_it_is_read_page_by_page_the_newest_first_and_by_key_or_action(api, db):
    other = Api(api.app, a_key(db, Scope.SUBMIT, name="ci"))
    for n in range(5):
        (other if n % 2 else api).upload(f"bytes {n}".encode())
    found, cursor = [], None
    while True:
        query = {"limit": 2, "action": "upload"} | ({"cursor": cursor} if cursor else {})
        page = api.get("/v1/audit", params=query).json()
        found += page["items"]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert len(found) == 5
    assert [one["id"] for one in found] == sorted((one["id"] for one in found), reverse=True)
    by_ci = api.get("/v1/audit", params={"key": credentials.id_of(other.key)}).json()["items"]
    assert [one["who"] for one in by_ci] == ["ci", "ci"]


def test_what_the_farm_does_on_its_own_is_the_farms(api, db, services):
    _old_upload(api, db)
    gc.collect(db, services.store, older_than_s=7200)
    [row] = rows(db, "gc")
    assert (row.who, row.key_id) == ("the farm", None)
