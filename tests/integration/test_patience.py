"""How long a unit of work waits for others: as long as its caller has patience, and not per thing."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from sqlalchemy import text

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
