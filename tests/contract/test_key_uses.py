"""When a key was used, and who is let in while the database is away."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from farm.database.base import now
from farm.database.tables import ApiKey
from farm.errors import DatabaseUnavailable
from farm.specs.scopes import Scope
from farm.trust import credentials, keys
from tests.contract.conftest import with_key
from tests.keys import a_key


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
