"""How a key begins, is used and ends."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from farm.database.base import now
from farm.database.tables import ApiKey, Build, Job
from farm.errors import Conflict
from farm.specs.scopes import Scope
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM
from tests.contract.conftest import request, with_key
from tests.keys import a_key


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


@pytest.mark.usefixtures("patient")
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
    answer = BlobResponse(store.place(api.upload(b"an engine")), etag='"x"')
    assert answer.headers["cache-control"].startswith("private")
