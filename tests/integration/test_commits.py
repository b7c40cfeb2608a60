"""Whoever waits for commits is told of them, by whichever process they are made."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from farm.database import commits
from farm.database.commits import Watch
from farm.database.session import Database
from farm.database.tables import Model

pytestmark = pytest.mark.timeout(300)

FOREVER_S = 3600.0  #: a wait that only ends by itself fails the test by its time limit


@pytest.fixture
def other(db: Database) -> Iterator[Database]:
    """As another process has it."""
    made = Database(db.url.render_as_string(hide_password=False))
    yield made
    made.dispose()


@pytest.fixture
def watch(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    for limit in ("_AT_MOST_S", "_DEAF_S"):
        monkeypatch.setattr(commits, limit, FOREVER_S)
    made = db.watch()
    made.wait()  # the first call returns at once
    yield made
    made.close()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def add(db: Database, name: str) -> None:
    with db.write() as session:
        session.add(Model(name=name))


def test_a_wait_ends_with_another_processes_commit(
    watch: Watch, other: Database, thread: ThreadPoolExecutor
) -> None:
    for name in ("one", "two", "three"):
        waiting: Future[None] = thread.submit(watch.wait)
        add(other, name)
        waiting.result()


def test_a_wait_ends_with_ones_own_commit(watch: Watch, db: Database) -> None:
    add(db, "own")
    watch.wait()


def test_a_commit_before_the_wait_is_not_missed(watch: Watch, other: Database) -> None:
    add(other, "before")
    watch.wait()


def test_a_wait_ends_without_a_commit_after_a_while(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_AT_MOST_S", "_DEAF_S"):
        monkeypatch.setattr(commits, limit, 0.01)
    watch.wait()


def test_a_broken_connection_is_replaced(
    watch: Watch, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_DEAF_S", 0.01)
    watch._driver.close()
    watch.wait()  # notices it
    watch.wait()  # connects
    monkeypatch.setattr(commits, "_DEAF_S", FOREVER_S)
    add(other, "after")
    watch.wait()


def test_a_database_that_is_left_tells_no_more(db: Database) -> None:
    add(db, "last")
    db.dispose()
    db.dispose()
    add(db, "and one more")
    with db.read() as session:
        assert session.query(Model).count() == 2
