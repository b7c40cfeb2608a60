"""A worker's name is its home's while it lives."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from farm.database.base import now
from farm.database.tables import Worker
from farm.errors import WorkerNameTaken
from farm.fleet import workers
from farm.fleet.workers import Announcement
from farm.local import home as homes
from workers.runner import sole
from workers.runner.heartbeat import Heartbeat, require_name
from workers.runner.shown import Flower

pytestmark = pytest.mark.services

TTL_S = 30.0
ONE = Announcement(
    name="cpu@box",
    host="one",
    gpu=None,
    gpu_uuid=None,
    tags=("cpu",),
    queues=("cpu",),
    runtimes={},
    toolchain={},
    holder=str(uuid.uuid4()),
)
OTHER = replace(ONE, host="two", holder=str(uuid.uuid4()))


def heart(db, who: Announcement) -> Heartbeat:
    return Heartbeat(db, who, Flower(), ttl_s=TTL_S)


def silent(db, seconds: float) -> None:
    """As if the worker had said nothing for so long."""
    with db.write() as session:
        session.execute(update(Worker).values(last_seen_at=now() - timedelta(seconds=seconds)))


def row(db) -> Worker:
    with db.read() as session:
        return session.query(Worker).one()


def test_a_second_worker_of_a_name_is_refused_and_told_who_has_it_since_when(db, caplog):
    assert heart(db, ONE).beat()
    second = heart(db, OTHER)
    assert not second.beat()
    assert not second.announced
    assert "cpu@box is online on one since 20" in caplog.text
    assert "farm worker --name NAME" in caplog.text
    assert (row(db).host, row(db).holder) == ("one", ONE.holder)


def test_a_worker_that_starts_again_in_its_home_has_its_name_at_once(db):
    assert heart(db, ONE).beat()
    again = heart(db, ONE)
    assert again.beat()
    assert again.announced


def test_a_dead_workers_name_is_free_when_it_has_been_silent_for_long_enough(db):
    assert heart(db, ONE).beat()
    silent(db, TTL_S - 5)
    assert not heart(db, OTHER).beat()
    silent(db, TTL_S + 1)
    assert heart(db, OTHER).beat()
    assert row(db).host == "two"


def test_a_worker_that_left_leaves_its_name(db):
    assert heart(db, ONE).beat()
    with db.write() as session:
        workers.left(session, ONE.name, holder=ONE.holder)
    assert heart(db, OTHER).beat()


def test_a_worker_whose_name_was_taken_while_it_was_silent_learns_it_and_ends_nobody(db):
    first = heart(db, ONE)
    assert first.beat()
    silent(db, TTL_S + 1)
    assert heart(db, OTHER).beat()
    assert not first.beat()
    with db.write() as session:
        workers.left(session, ONE.name, holder=ONE.holder)
    assert row(db).left_at is None
    assert row(db).host == "two"


def test_a_worker_of_an_older_farm_holds_its_name_by_its_host(db):
    older = replace(ONE, holder=None)
    with db.write() as session:
        workers.announce(session, older)
    assert not heart(db, OTHER).beat()
    assert heart(db, ONE).beat()  # the same machine, upgraded


def test_of_many_that_begin_at_once_one_has_the_name(db):
    held = []
    start = threading.Barrier(4)

    def begin(number: int) -> None:
        mine = heart(db, replace(ONE, host=f"host-{number}", holder=str(uuid.uuid4())))
        start.wait()
        # A beat that lost a race with another's first one is repeated.
        while (holds := mine.beat()) and not mine.announced:
            pass
        held.append(holds)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == [False, False, False, True]


def test_a_supervisor_is_the_only_one_of_its_names_in_its_home(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with sole.sole_supervisor(one, ["cpu@box", "gpu0@box"]):
        with (
            pytest.raises(WorkerNameTaken, match=r"gpu0@box already runs in .*one, supervised by"),
            sole.sole_supervisor(one, ["gpu0@box"]),
        ):
            pass
        with sole.sole_supervisor(one, ["cpu@another"]), sole.sole_supervisor(two, ["cpu@box"]):
            pass
    with sole.sole_supervisor(one, ["cpu@box"]):
        pass


def test_a_worker_asks_for_its_name_before_it_does_anything(db, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "one")
    assert heart(db, ONE).beat()
    require_name(db, ONE.name, holder=ONE.holder, ttl_s=TTL_S)
    with pytest.raises(WorkerNameTaken, match="cpu@box is online on one"):
        require_name(db, ONE.name, holder=OTHER.holder, ttl_s=TTL_S)
    require_name(db, "cpu@another", holder=OTHER.holder, ttl_s=TTL_S)


def test_a_home_has_one_id_whoever_asks_first(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(homes.holder(tmp_path / "home")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [one.name for one in (tmp_path / "home").iterdir()] == ["worker-id"]
