"""Keys: who may call what, how a key begins and ends, and what an operation without a scope does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import anyio
import httpx2
import pytest
from fastapi import Response
from sqlalchemy import select, text
from typer.testing import CliRunner

from farm.api import access
from farm.api.app import create_app
from farm.cli import app as commands
from farm.client import Farm
from farm.database.base import now
from farm.database.tables import ApiKey, Build, Job
from farm.errors import Conflict, DatabaseUnavailable, InternalError, KeyNeeded, ScopeMissing
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM, allows
from farm.trust.ring import Ring
from tests.contract.conftest import Api
from tests.contract.live_api import live_api
from tests.keys import a_key, bearer

OPEN = ("/healthz", "/readyz", "/docs", "/docs/swagger-ui.css", "/openapi.json")
REQUEST = {
    "model": "digits",
    "precisions": ["fp16"],
    "targets": ["tensorrt-rtx:sm_89"],
}


@pytest.fixture
def db(api):
    return api.app.state.services.db


@pytest.fixture
def ring(api) -> Ring:
    return api.app.state.services.ring


def operations(api: Api) -> list[tuple[str, str]]:
    return access.operations(api.app.routes)


def locked(api: Api) -> list[tuple[str, str]]:
    settings = api.app.state.services.settings
    return [(m, p) for m, p in operations(api) if not access.is_open(p, settings)]


def filled(path: str) -> str:
    """A path with something that isn't there for each parameter."""
    return "/".join("none" if part.startswith("{") else part for part in path.split("/"))


def with_key(api: Api, key: str | None) -> Api:
    return Api(api.app, key)


def request(api: Api, **changes):
    source = {"digest": api.upload(b"a model"), "format": "onnx"}
    return REQUEST | {"source": source} | changes


# What needs which


def test_every_operation_has_a_scope_and_every_scope_an_operation(api):
    assert set(locked(api)) | {("GET", access.METRICS)} == set(access.SCOPES)


def test_an_operation_without_a_scope_keeps_the_api_from_starting(api, monkeypatch):
    @api.app.get("/v1/new")
    def new() -> None: ...

    with pytest.raises(InternalError, match="GET /v1/new has no scope"):
        access.Access(api.app.routes, api.app.state.services.ring, Settings())
    kept = {one: scope for one, scope in access.SCOPES.items() if one != ("POST", "/v1/gc")}
    monkeypatch.setattr(access, "SCOPES", kept)
    with pytest.raises(InternalError, match="POST /v1/gc has no scope"):
        create_app(api.app.state.services.settings)


def test_what_has_no_methods_keeps_the_api_from_starting(api):
    api.app.mount("/files", Response("anything"))
    with pytest.raises(InternalError, match="/files has no methods"):
        access.Access(api.app.routes, api.app.state.services.ring, Settings())


def test_no_websocket_is_opened(api):
    said = []

    async def go():
        async def send(message):
            said.append(message["type"])

        await api.app({"type": "websocket", "path": "/v1/builds", "headers": []}, None, send)

    anyio.run(go)
    assert said == ["websocket.close"]


def test_what_only_reads_needs_no_more_than_reading_but_for_keys_and_the_audit():
    for (method, path), scope in access.SCOPES.items():
        if method in ("GET", "HEAD") and not path.startswith(("/v1/keys", "/v1/audit")):
            assert scope is Scope.READ or (method, path) == ("HEAD", "/v1/blobs/{digest}"), path
        else:
            assert scope is not Scope.READ, path


def test_a_scope_allows_reading_and_itself_and_admin_allows_all():
    assert all(allows([held], Scope.READ) for held in Scope)
    assert all(allows([Scope.ADMIN], wanted) for wanted in Scope)
    assert not allows([Scope.SUBMIT], Scope.PROMOTE)
    assert not allows([Scope.PROMOTE], Scope.SUBMIT)
    assert not allows([Scope.SUBMIT, Scope.PROMOTE], Scope.ADMIN)
    assert not allows([], Scope.READ)


def test_without_a_key_nothing_is_answered_but_what_is_open(api):
    nobody = with_key(api, None)
    for path in OPEN:
        assert nobody.get(path).status_code != 401, path
    for method, path in [*locked(api), ("GET", "/none"), ("GET", "/v1"), ("PATCH", "/v1/builds")]:
        answer = nobody.request(method, filled(path))
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == 'Bearer realm="engine farm"'
        if method != "HEAD":
            assert answer.json()["code"] == "key-needed"
            assert "farm keys create" in answer.json()["hint"]


@pytest.mark.parametrize("scope", Scope)
def test_a_key_may_call_what_its_scope_allows_and_is_told_what_it_lacks(api, db, scope):
    caller = with_key(api, a_key(db, scope))
    for method, path in locked(api):
        answer = caller.request(method, filled(path))
        needed = access.SCOPES[method, path]
        if allows([scope], needed):
            assert answer.status_code not in (401, 403), (method, path)
            continue
        assert answer.status_code == 403, (method, path)
        assert f'error="insufficient_scope", scope="{needed}"' in answer.headers["www-authenticate"]
        if method != "HEAD":
            assert answer.json()["code"] == "scope-missing"
            assert f"needs the scope {needed}" in answer.json()["detail"]
            assert f"--scope {needed}" in answer.json()["hint"]


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer {upper}",
        "Bearer farm_0000000000_" + "0" * 64,
        "Bearer \N{LATIN SMALL LETTER SHARP S}",
    ],
)
def test_what_isnt_a_key_of_the_farm_opens_nothing(api, sent):
    text = sent.format(key=api.key, upper=api.key.upper()).encode("latin-1")
    answer = with_key(api, None).get("/v1/builds", headers=[(b"authorization", text)])
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_the_right_id_with_another_secret_opens_nothing(api):
    forged = api.key[:-64] + "0" * 64
    assert with_key(api, forged).get("/v1/builds").status_code == 401


def test_two_keys_at_once_are_none(api):
    pair = [(b"authorization", f"Bearer {api.key}".encode())] * 2
    assert with_key(api, None).get("/v1/builds", headers=pair).status_code == 401


def test_the_scheme_is_known_however_it_is_written(api):
    headers = {"Authorization": f"bearer {api.key}"}
    assert with_key(api, None).get("/v1/builds", headers=headers).status_code == 200


def test_another_site_is_refused_before_any_key_is_looked_at(api):
    headers = {"Origin": "http://evil.example"}
    assert with_key(api, None).post("/v1/builds", headers=headers).status_code == 403


def test_metrics_ask_for_a_key_where_the_setting_says_so(api, settings):
    assert with_key(api, None).get("/metrics").status_code == 200
    app = create_app(settings.model_copy(update={"metrics_need_key": True}))
    assert Api(app, None).get("/metrics").status_code == 401
    assert Api(app).get("/metrics").status_code == 200
    app.state.services.db.dispose()


def test_where_no_keys_are_required_anybody_may_do_everything_but_not_with_a_wrong_key(settings):
    app = create_app(settings.model_copy(update={"keys_required": False}))
    anybody = Api(app, None)
    assert anybody.post("/v1/builds", json=request(anybody)).status_code == 202
    assert anybody.get("/v1/keys").status_code == 200
    assert Api(app, "farm_wrong").get("/v1/builds").status_code == 401
    assert anybody.get("/v1/audit").json()["items"][0]["who"] == "anonymous"
    app.state.services.db.dispose()


def test_the_document_says_what_each_operation_needs(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert paths["/v1/gc"]["post"]["security"] == [{"key": ["admin"]}]
    assert paths["/v1/builds"]["get"]["security"] == [{"key": ["read"]}]
    assert "401" in paths["/v1/builds"]["get"]["responses"]
    assert "security" not in paths["/healthz"]["get"]


# How a key begins and ends


def test_a_key_is_shown_once_and_kept_as_its_digest(api, db):
    made = api.post("/v1/keys", json={"name": "ci", "scopes": ["submit", "read", "submit"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    assert key.startswith(f"farm_{made.json()['id']}_")
    assert len(key.rsplit("_", 1)[1]) * 4 == 256
    assert made.json()["scopes"] == ["read", "submit"]
    shown = api.get(made.headers["location"])
    assert shown.json() == {k: v for k, v in made.json().items() if k != "key"}
    secret = key.rsplit("_", 1)[1]
    with db.read() as session:
        for table in ("api_keys", "audit"):
            rows = session.execute(text(f"SELECT * FROM {table}")).all()
            assert rows
            assert secret not in str(rows)
        row = session.get(ApiKey, made.json()["id"])
        assert row.digest == credentials.digest_of(key)
    assert secret not in api.get("/v1/keys").text + api.get("/v1/audit").text
    assert with_key(api, key).post("/v1/builds", json=request(with_key(api, key))).is_success


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "", "scopes": ["read"]},
        {"name": "a b", "scopes": ["read"]},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": ["read"], "expires_in_s": 0},
        {"name": "x", "scopes": ["read"], "expires_in_s": 10**12},
        {"name": "x", "scopes": ["read"], "digest": "0" * 64},
    ],
)
def test_a_key_that_makes_no_sense_isnt_made(api, wrong):
    assert api.post("/v1/keys", json=wrong).status_code == 422


def test_a_revoked_key_opens_nothing_from_then_on(api):
    made = api.post("/v1/keys", json={"name": "ci", "scopes": ["read"]}).json()
    other = with_key(api, made["key"])
    assert other.get("/v1/builds").status_code == 200
    gone = api.request("DELETE", f"/v1/keys/{made['id']}")
    assert gone.status_code == 200
    assert gone.json()["revoked_at"]
    assert other.get("/v1/builds").status_code == 401
    assert api.request("DELETE", f"/v1/keys/{made['id']}").json() == gone.json()
    assert api.request("DELETE", "/v1/keys/none").status_code == 404


def test_a_key_that_another_process_revoked_opens_nothing_after_a_second(
    api, db, ring, monkeypatch
):
    key = a_key(db, Scope.READ)
    assert with_key(api, key).get("/v1/builds").status_code == 200
    with db.write() as session:
        keys.revoke(session, credentials.id_of(key), by=THE_FARM)
    later = time.monotonic() + 1.1
    monkeypatch.setattr("farm.trust.ring.time.monotonic", lambda: later)
    assert with_key(api, key).get("/v1/builds").status_code == 401


def test_a_key_that_another_process_made_opens_at_once(api, db, ring):
    assert api.get("/v1/builds").status_code == 200  # what there was has just been read
    ring._looked_s -= 0.2
    assert with_key(api, a_key(db, Scope.READ)).get("/v1/builds").status_code == 200


def test_an_expired_key_opens_nothing_to_the_second(api, db, monkeypatch):
    key = a_key(db, Scope.READ, expires_in_s=3600)
    assert with_key(api, key).get("/v1/builds").status_code == 200
    later = now() + timedelta(hours=1, seconds=1)
    monkeypatch.setattr("farm.trust.ring.now", lambda: later)
    assert with_key(api, key).get("/v1/builds").status_code == 401


def test_the_last_key_that_can_make_others_cant_be_revoked(api, db):
    mine = credentials.id_of(api.key)
    a_key(db, Scope.SUBMIT)
    refused = api.request("DELETE", f"/v1/keys/{mine}")
    assert refused.status_code == 409
    assert "create another first" in refused.json()["hint"]
    other = credentials.id_of(a_key(db, Scope.ADMIN))
    assert api.request("DELETE", f"/v1/keys/{other}").status_code == 200
    a_key(db, Scope.ADMIN, expires_in_s=3600)
    assert api.request("DELETE", f"/v1/keys/{mine}").status_code == 200


def test_of_two_admins_that_revoke_each_other_one_stays(api, db):
    ids = [credentials.id_of(api.key), credentials.id_of(a_key(db, Scope.ADMIN))]
    ended = []

    def revoke(key_id: str) -> None:
        try:
            with db.write() as session:
                keys.revoke(session, key_id, by=THE_FARM)
            ended.append(key_id)
        except Conflict:
            pass

    threads = [threading.Thread(target=revoke, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 1


def test_keys_are_listed_page_by_page_the_newest_first(api, db):
    made = [credentials.id_of(a_key(db, Scope.READ, name=f"key-{n}")) for n in range(5)]
    listed, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.get("/v1/keys", params=query).json()
        listed += [one["id"] for one in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert listed == [*reversed(made), credentials.id_of(api.key)]
    assert api.get("/v1/keys", params={"cursor": "none"}).status_code == 404


# When it was used


def test_its_last_use_is_written_once_a_minute_and_not_by_the_request(api, db, ring, monkeypatch):
    key = a_key(db, Scope.READ)

    def used():
        with db.read() as session:
            return session.get(ApiKey, credentials.id_of(key)).last_used_at

    caller, start = with_key(api, key), now()
    caller.get("/v1/builds")
    assert used() is None
    ring.write_uses()
    first = used()
    assert start <= first <= now()
    caller.get("/v1/builds")
    assert not ring._used
    later = first + timedelta(seconds=61)
    monkeypatch.setattr("farm.trust.ring.now", lambda: later)
    caller.get("/v1/builds")
    ring.write_uses()
    assert used() == later


def test_a_use_that_cant_be_written_is_written_later(api, db, ring):
    key = a_key(db, Scope.READ)
    with_key(api, key).get("/v1/builds")
    real = db.write

    def away():
        raise DatabaseUnavailable("away")

    db.write = away
    with pytest.raises(DatabaseUnavailable):
        ring.write_uses()
    db.write = real
    ring.write_uses()
    with db.read() as session:
        assert session.get(ApiKey, credentials.id_of(key)).last_used_at


def test_a_wrong_key_is_no_use(api, db, ring):
    ring.write_uses()
    with_key(api, api.key[:-1] + ("0" if api.key[-1] != "0" else "1")).get("/v1/builds")
    assert not ring._used


def test_guesses_cost_one_look_at_the_database_in_a_tenth_of_a_second(api, db, ring, monkeypatch):
    looks = []
    real = keys.live
    monkeypatch.setattr(keys, "live", lambda session: looks.append(1) or real(session))
    frozen = time.monotonic()
    monkeypatch.setattr("farm.trust.ring.time.monotonic", lambda: frozen)
    for _ in range(50):
        assert ring.look(credentials.new()[0]) is None
    assert len(looks) == 1
    guess = credentials.new()[0]
    assert ring.is_unknown(guess)  # so that not even a thread is taken
    assert not ring.is_unknown(api.key)
    frozen += 0.5
    assert not ring.is_unknown(guess)
    assert ring.is_unknown("no key at all")


class Clock:
    def __init__(self) -> None:
        self.at_s = time.monotonic()

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """That of keys stands still until it is told."""
    made = Clock()
    monkeypatch.setattr("farm.trust.ring.time.monotonic", made)
    return made


@pytest.fixture
def away(db, monkeypatch):
    """Lets the database be away, and counts how often it is asked."""
    asked = []

    def begin():
        def read():
            asked.append(1)
            raise DatabaseUnavailable("it is away")

        monkeypatch.setattr(db, "read", read)
        return asked

    return begin


def test_while_the_database_is_away_nobody_new_is_let_in_and_one_look_tells_all(
    api, ring, clock, away
):
    asked = away()
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable):
            ring.look(api.key)
    assert len(asked) == 1
    answer = api.get("/v1/builds")
    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
    assert with_key(api, None).get("/healthz").status_code == 200
    clock.at_s += 1
    with pytest.raises(DatabaseUnavailable):
        ring.look(api.key)
    assert len(asked) == 2


def test_who_was_let_in_a_moment_ago_is_known_while_the_database_is_away(api, ring, clock, away):
    assert api.get("/v1/builds").status_code == 200
    away()
    clock.at_s += 10
    assert api.get("/none").status_code == 404
    assert with_key(api, credentials.new()[0]).get("/none").status_code == 503
    clock.at_s += 30
    assert api.get("/none").status_code == 503


# Whose turn, whose repeat


def test_turns_go_by_the_key_and_not_by_what_a_client_calls_itself(api, db):
    one, other = a_key(db, Scope.SUBMIT, name="one"), a_key(db, Scope.SUBMIT, name="other")
    for key, label in ((one, "a"), (one, "b"), (other, "a")):
        caller = with_key(api, key)
        sent = request(caller, model=f"{label}-{key[5:9]}")
        headers = {"Farm-Client": label}
        assert caller.post("/v1/builds", json=sent, headers=headers).status_code == 202
    with db.read() as session:
        clients = session.scalars(select(Build.client)).all()
        assert set(session.scalars(select(Job.client))) <= set(clients)
    assert sorted(set(clients)) == sorted(f"key {credentials.id_of(key)}" for key in (one, other))


def test_an_idempotency_key_is_the_keys_own(api, db):
    one, other = (with_key(api, a_key(db, Scope.SUBMIT)) for _ in range(2))
    sent, headers = request(one), {"Idempotency-Key": "nightly"}
    first = one.post("/v1/builds", json=sent, headers=headers).json()["id"]
    assert one.post("/v1/builds", json=sent, headers=headers).json()["id"] == first
    theirs = other.post("/v1/builds", json=sent, headers=headers)
    assert theirs.status_code == 202
    assert theirs.json()["id"] != first
    differs = other.post("/v1/builds", json=sent | {"model": "b"}, headers=headers)
    assert differs.status_code == 409


def test_the_longest_idempotency_key_is_taken(api):
    headers = {"Idempotency-Key": "k" * 200}
    assert api.post("/v1/builds", json=request(api), headers=headers).status_code == 202


def test_an_engine_isnt_kept_by_caches_that_serve_others(api):
    from farm.api.files import BlobResponse

    store = api.app.state.services.store
    answer = BlobResponse(store.path(api.upload(b"an engine")), etag='"x"')
    assert answer.headers["cache-control"].startswith("private")


# Its client, its commands, and a process of its own


class Bridge(httpx2.BaseTransport):
    """Carries a client's requests to the API in this process."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"host"]
        path = request.url.raw_path.decode()
        answer = self._api.request(request.method, path, headers=headers, content=request.read())
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def client(api: Api, key: str) -> Farm:
    return Farm("http://localhost", key=key, transport=Bridge(with_key(api, None)))


@pytest.fixture
def farm(api) -> Farm:
    return client(api, api.key)


def test_the_client_makes_lists_and_revokes_keys_and_reads_the_audit(api, farm):
    made = farm.create_key("ci", ["submit"], expires_in_s=3600)
    theirs = client(api, made.key)
    assert theirs.builds() == []
    with pytest.raises(ScopeMissing):
        theirs.keys()
    listed = farm.keys()
    assert [one.name for one in listed] == ["ci", "tests"]
    assert farm.revoke_key(made.id).revoked_at
    with pytest.raises(KeyNeeded, match="expired, or was revoked"):
        theirs.builds()
    assert [one.action for one in farm.audit(limit=2)] == ["key.revoke", "key.create"]
    assert farm.audit(action="key.revoke")[0].object == made.id
    with pytest.raises(Conflict):
        farm.revoke_key(credentials.id_of(api.key))


def test_the_commands_show_the_keys_and_the_audit(api, monkeypatch):
    monkeypatch.setattr("farm.cli.keys.connect", lambda _url: client(api, api.key))

    def run(*words: str):
        result = CliRunner().invoke(commands, list(words))
        assert result.exit_code == 0, result.output
        return result

    key = run("keys", "create", "--name", "ci", "--scope", "submit", "--expires", "12h").stdout
    key_id = credentials.id_of(key.strip())
    table = run("keys", "list").stdout
    assert key_id in table
    assert "submit" in table
    run("keys", "revoke", key_id)
    assert "revoked" in run("keys", "list").stdout
    shown = run("audit").stdout
    assert "key.revoke" in shown
    assert "name ci" in shown
    [row] = json.loads(run("audit", "--action", "key.revoke", "--json").stdout)
    assert (row["object"], row["who"]) == (key_id, "tests")


@pytest.mark.xdist_group("live-api")
def test_a_served_api_writes_down_uses_and_hears_of_what_the_machines_owner_revokes(tmp_path):
    with live_api(tmp_path / "api") as live:
        made = live.http.post("/v1/keys", json={"name": "ci", "scopes": ["read"]}).json()
        theirs = bearer(made["key"])
        assert httpx2.get(f"{live.url}/v1/builds", headers=theirs, timeout=60).status_code == 200
        until(lambda: live.http.get(f"/v1/keys/{made['id']}").json()["last_used_at"])
        subprocess.run(
            [sys.executable, "-m", "farm", "keys", "revoke", made["id"], "--local"],
            env=os.environ | live.settings.environment(),
            check=True,
        )
        until(lambda: httpx2.get(f"{live.url}/v1/builds", headers=theirs).status_code == 401)
        [row] = live.http.get("/v1/audit", params={"action": "key.revoke"}).json()["items"]
        assert (row["key_id"], row["address"]) == (None, "this machine")


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
