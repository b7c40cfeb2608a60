"""How long a unit of work waits for others: as long as its caller has patience, and not per thing."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError, InvalidRequestError

from farm.database.faults import fault_of
from farm.database.session import Database
from farm.database.tables import Model
from farm.errors import DatabaseUnavailable

PATIENCE_S = 0.3


@pytest.fixture
def hasty(database_url):
    made = Database(database_url, patience_s=PATIENCE_S)
    yield made
    made.dispose()


def add(database: Database, name: str) -> None:
    with database.write() as session:
        session.add(Model(name=name))


def test_another_process_that_writes_is_waited_for_once(db, hasty):
    with db.write() as session:
        session.add(Model(name="held"))
        session.flush()
        if not db.is_sqlite:
            session.execute(text("LOCK TABLE models IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="timed out waiting for other writers"):
            add(hasty, "waits")
        assert time.monotonic() - began >= PATIENCE_S * 0.9
    add(hasty, "waits")


def test_another_thread_that_writes_is_waited_for_once(hasty):
    if not hasty.is_sqlite:
        pytest.skip("Postgres has many writers")
    with (
        hasty.write(),
        pytest.raises(DatabaseUnavailable, match="timed out waiting for other writers"),
        hasty.write(),
    ):
        pass
    with hasty.write() as session:
        session.add(Model(name="goes on"))


def test_a_connection_is_not_waited_for_without_end(hasty):
    def look() -> None:
        with hasty.read() as session:
            session.execute(text("SELECT 1"))

    with ExitStack() as all_of_them:
        for _ in range(30):
            all_of_them.enter_context(hasty.read()).execute(text("SELECT 1"))
        with pytest.raises(DatabaseUnavailable, match="in use"):
            look()
    look()


def test_connections_that_break_before_they_are_used_are_the_databases_fault(db):
    def broken(*_: object) -> None:
        raise DisconnectionError("it was ended")

    def look() -> None:
        with db.read() as session:
            session.execute(text("SELECT 1"))

    event.listen(db.engine, "checkout", broken)
    with pytest.raises(DatabaseUnavailable, match="ended each connection"):
        look()
    with pytest.raises(DatabaseUnavailable, match="ended each connection"):
        add(db, "lost")
    event.remove(db.engine, "checkout", broken)
    look()


def test_a_fault_of_the_farm_is_not_told_as_the_databases():
    assert fault_of(InvalidRequestError("A transaction is already begun on this Session.")) is None
