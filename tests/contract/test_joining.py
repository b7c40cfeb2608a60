"""Join tokens: how they begin, are used and end, and what a machine gets by one."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import text

from farm.api.app import create_app
from farm.database.base import now
from farm.database.tables import JoinToken, Worker
from farm.quotas.rates import GUESSES
from farm.specs.scopes import Scope
from farm.trust import audit, credentials
from tests.contract.conftest import Api, with_key
from tests.keys import a_key
from tests.ledger import Ledger

FAR = "http://192.0.2.7:8000/v1/join"
REACHED = {
    "join_broker_url": "redis://:secret@broker.example:6379/0",
    "join_database_url": "postgresql://worker:secret@db.example/farm",
}


def token(api: Api, **asked) -> str:
    made = api.post("/v1/tokens", json=asked)
    assert made.status_code == 201, made.text
    return made.json()["token"]


def join(api: Api, token: str, url: str = "/v1/join", **asked):
    return with_key(api, None).post(url, json={"token": token, "name": "box"} | asked)


def with_settings(api: Api, **changes) -> Api:
    settings = api.app.state.services.settings.model_copy(update=changes)
    return Api(create_app(settings), api.key)


def test_a_token_is_shown_once_and_kept_as_its_digest(api, db):
    made = api.post("/v1/tokens", json={"expires_in_s": 600, "uses": 3})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    told = made.json()
    assert told["token"].startswith(f"join_{told['id']}_")
    assert (told["uses"], told["used"], told["created_by"]) == (3, 0, "tests")
    shown = api.get(made.headers["location"]).json()
    assert shown == {k: v for k, v in told.items() if k != "token"}
    assert api.get("/v1/tokens").json()["items"] == [shown]
    secret = told["token"].rsplit("_", 1)[1]
    with db.read() as session:
        for table in ("join_tokens", "audit"):
            assert secret not in str(session.execute(text(f"SELECT * FROM {table}")).all())
        row = session.get(JoinToken, told["id"])
        assert row.digest == credentials.digest_of(told["token"])
        assert row.expires_at - row.created_at == timedelta(minutes=10)


def test_a_token_is_by_default_for_one_machine_within_an_hour(api):
    made = api.post("/v1/tokens", json={}).json()
    assert made["uses"] == 1
    assert made["expires_at"][:13] != made["created_at"][:13]
    assert join(api, made["token"]).status_code == 201
    again = join(api, made["token"])
    assert (again.status_code, again.json()["code"]) == (403, "join-refused")
    assert "has been used 1 of 1 times" in again.json()["detail"]
    assert "farm tokens create --worker" in again.json()["hint"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"uses": 0},
        {"uses": 10**6},
        {"expires_in_s": 1},
        {"expires_in_s": 10**9},
        {"scopes": ["admin"]},
    ],
)
def test_a_token_that_makes_no_sense_isnt_made(api, wrong):
    assert api.post("/v1/tokens", json=wrong).status_code == 422
    assert api.get("/v1/tokens").json()["items"] == []


def test_who_joins_gets_a_workers_settings_and_a_key_that_only_works(api, settings):
    answer = join(api, token(api))
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert told["database_url"] == settings.database
    assert told["broker_url"] == settings.broker
    assert told["store"] is None
    assert told["settings"]["lease_ttl_s"] == settings.lease_ttl_s
    worker = with_key(api, told["key"])
    digest = worker.upload(b"made by a job")
    assert worker.get(f"/v1/blobs/{digest}").content == b"made by a job"
    assert worker.post("/v1/tokens", json={}).status_code == 403
    shown = api.get(answer.headers["location"]).json()
    assert (shown["name"], shown["scopes"]) == ("worker@box", ["work"])
    assert shown["created_by"].startswith("join token ")
    assert api.request("DELETE", answer.headers["location"]).is_success
    assert worker.get(f"/v1/blobs/{digest}").status_code == 401


def test_joining_is_audited_under_its_token(api, db):
    text = token(api)
    told = join(api, text).json()
    with db.read() as session:
        rows = audit.page(session, limit=3)
    assert [one.action for one in rows] == ["join", "key.create", "token.create"]
    assert rows[0].object == credentials.join_id_of(text)
    assert rows[0].details == {"name": "box", "key": told["key_id"]}
    assert rows[0].who == rows[1].who == f"join token {rows[0].object}"


def test_a_revoked_token_lets_nobody_in_and_ends_nobody(api):
    text = token(api, uses=5)
    joined = join(api, text).json()
    gone = api.request("DELETE", f"/v1/tokens/{credentials.join_id_of(text)}")
    assert gone.json()["revoked_at"]
    assert gone.json()["used"] == 1
    refused = join(api, text, name="other")
    assert (refused.status_code, refused.json()["code"]) == (403, "join-refused")
    assert "was revoked" in refused.json()["detail"]
    assert with_key(api, joined["key"]).get("/v1/me").status_code == 200
    assert api.request("DELETE", "/v1/tokens/none").status_code == 404


def test_an_expired_token_lets_nobody_in(api, monkeypatch):
    text = token(api, expires_in_s=60)
    monkeypatch.setattr("farm.trust.join_tokens.now", lambda: now() + timedelta(seconds=61))
    refused = join(api, text)
    assert refused.status_code == 403
    assert "expired at" in refused.json()["detail"]


@pytest.mark.usefixtures("patient")
def test_of_many_that_join_at_once_no_more_do_than_a_token_has_uses(api, db):
    text = token(api, uses=2)
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(join(api, text, name=f"box-{n}")))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.status_code for one in answers) == [201] * 2 + [403] * 4
    with db.read() as session:
        assert session.get(JoinToken, credentials.join_id_of(text)).used == 2


@pytest.mark.parametrize(
    "wrong", ["", "join_7k2c9qd4mx_" + "0" * 64, "farm_7k2c9qd4mx_" + "0" * 64]
)
def test_what_is_no_token_of_the_farms_is_refused_without_a_word_about_others(api, wrong):
    token(api)
    refused = join(api, wrong)
    assert refused.status_code == 403
    assert refused.json()["detail"] == "unknown join token: it is another farm's, or mistyped"


def test_guesses_are_limited_by_address_and_right_tokens_count_nothing(api, within_a_minute):
    right = token(api, uses=50)
    for n in range(GUESSES + 1):
        assert join(api, right, name=f"box-{n}").status_code == 201
    for _ in range(GUESSES):
        assert join(api, "join_7k2c9qd4mx_" + "0" * 64).status_code == 403
    late = join(api, right, name="late")
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) >= 1
    assert "wrong join tokens" in late.json()["detail"]


def test_a_key_of_any_scope_is_no_token(api, db):
    assert join(api, a_key(db, Scope.ADMIN)).status_code == 403


@pytest.mark.parametrize("name", ["", "a b", "../box", "-box", "b" * 81, "box\n"])
def test_a_name_that_cant_be_a_machines_is_refused_and_costs_no_use(api, name):
    text = token(api)
    assert join(api, text, name=name).status_code == 422
    assert join(api, text).status_code == 201


def test_a_name_whose_worker_is_online_elsewhere_is_refused_and_costs_no_use(api, db):
    Ledger(db).worker()
    with db.write() as session:
        row = session.query(Worker).one()
        name, host = row.name.partition("@")[2], row.host
        row.holder = str(uuid.uuid4())
        mine = row.holder
    text = token(api)
    refused = join(api, text, name=name, holder=str(uuid.uuid4()))
    assert (refused.status_code, refused.json()["code"]) == (409, "worker-name-taken")
    assert f"is online on {host} since 20" in refused.json()["detail"]
    assert "--name" in refused.json()["hint"]
    assert join(api, text, name=name, holder=mine).status_code == 201


def test_joining_again_ends_the_key_that_the_name_had(api):
    text = token(api, uses=3)
    first, other, again = (join(api, text, name=name).json() for name in ("box", "other", "box"))
    found = {one["id"]: one["revoked_at"] for one in api.get("/v1/keys").json()["items"]}
    assert found[first["key_id"]]
    assert found[other["key_id"]] is found[again["key_id"]] is None


@pytest.mark.parametrize(
    ("changes", "told", "hint"),
    [
        (
            {"database_url": "sqlite:////srv/farm.db"},
            "database is SQLite, a file on the API's machine",
            "Postgres",
        ),
        ({"database_url": "postgresql:///farm"}, "by a socket", "FARM_JOIN_DATABASE_URL"),
        (
            {"database_url": "postgresql://farm@/farm?host=/run/postgresql"},
            "by a socket",
            "FARM_JOIN_DATABASE_URL",
        ),
        (
            {"database_url": "postgresql://farm@127.0.0.1:5432/farm"},
            "at 127.0.0.1, which is its machine",
            "FARM_JOIN_DATABASE_URL",
        ),
        (
            {"database_url": "postgresql://farm@[::1]/farm"},
            "at ::1, which is its machine",
            "FARM_JOIN_DATABASE_URL",
        ),
        (
            {"join_database_url": "postgresql://db.example/farm"},
            "its broker at 127.0.0.1",
            "FARM_JOIN_BROKER_URL",
        ),
        (
            {
                "join_database_url": "postgresql://db.example/farm",
                "broker_url": "redis+socket:///run/redis.sock",
            },
            "its broker by a socket",
            "FARM_JOIN_BROKER_URL",
        ),
    ],
)
def test_what_only_the_apis_machine_reaches_isnt_handed_out_to_others(
    api, monkeypatch, changes, told, hint
):
    text = token(api)
    services = api.app.state.services
    monkeypatch.setattr(services, "settings", services.settings.model_copy(update=changes))
    refused = join(api, text, FAR)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert told in refused.json()["detail"]
    assert hint in refused.json()["hint"]
    assert "secret" not in refused.text
    assert join(api, text, "http://127.0.0.1:8000/v1/join").status_code == 201


def test_what_is_handed_out_may_differ_from_what_the_api_uses(api):
    changed = with_settings(api, **REACHED, join_store_url="s3://bucket/farm")
    told = join(changed, token(changed), FAR).json()
    assert told["broker_url"] == REACHED["join_broker_url"]
    assert told["database_url"] == REACHED["join_database_url"]
    assert told["store"] == "s3://bucket/farm"
    changed.app.state.services.db.dispose()
