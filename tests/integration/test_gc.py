"""Garbage collection: what nothing refers to goes, what something refers to never does."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from farm.daemon import gc
from farm.database.base import now
from farm.database.tables import Artifact
from farm.errors import NotFound, StageFailed
from farm.store import artifacts
from farm.store.local import LocalStore

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


class Shelf:
    """A store and its database together, as the API and the workers use them."""

    def __init__(self, ledger, store, folder):
        self.ledger, self.store, self._folder = ledger, store, folder

    def put(self, content, *, known=True, age_s=2 * DAY_S):
        file = self._folder / f"new-{threading.get_ident()}"
        file.write_bytes(content)
        stored = self.store.take(file)
        if known:
            with self.ledger.db.write() as session:
                artifacts.remember(session, stored.digest, size=stored.bytes)
        self.age(stored.digest, age_s)
        return stored.digest

    def age(self, digest, age_s):
        then = now() - timedelta(seconds=age_s)
        os.utime(self.store.place(digest), (then.timestamp(),) * 2)
        with self.ledger.db.write() as session:
            session.execute(
                update(Artifact).where(Artifact.digest == digest).values(created_at=then)
            )

    def collect(self, **options):
        return gc.collect(self.ledger.db, self.store, **({"older_than_s": DAY_S} | options))

    def rows(self):
        with self.ledger.db.read() as session:
            return set(session.scalars(select(Artifact.digest)))


@pytest.fixture
def shelf(ledger, store, tmp_path):
    return Shelf(ledger, store, tmp_path)


def test_an_upload_that_no_build_was_submitted_with_goes_and_can_come_again(shelf):
    digest = shelf.put(b"forgotten")
    report = shelf.collect()
    assert [(blob.digest, blob.bytes) for blob in report.removed] == [(digest, 9)]
    assert (report.removed_total, report.removed_bytes, report.kept) == (1, 9, 0)
    assert not shelf.store.has(digest)
    assert digest not in shelf.rows()
    assert shelf.put(b"forgotten") == digest
    assert shelf.store.has(digest)


def test_what_a_build_was_submitted_with_and_what_its_jobs_made_stays_for_ever(shelf):
    ledger = shelf.ledger
    given = {role: shelf.put(role.encode()) for role in ("source", "calibration", "evaluation")}
    build = ledger.submit(
        source={"digest": given["source"], "format": "onnx"},
        calibration={"digest": given["calibration"]},
        evaluation={"digest": given["evaluation"]},
    )
    made = {}
    while queued := ledger.queued():
        claim = ledger.claim(queued[0])
        digest = shelf.put(f"made by job {claim.job_id}".encode())
        made[claim.job_id] = digest
        ledger.succeed(claim, digest=digest)
    ledger.cancel(build)
    garbage = shelf.put(b"garbage")
    report = shelf.collect(older_than_s=0)
    assert [blob.digest for blob in report.removed] == [garbage]
    assert all(map(shelf.store.has, [*given.values(), *made.values()]))
    assert {*given.values(), *made.values()} <= shelf.rows()


def test_what_a_failed_job_left_goes(shelf):
    ledger = shelf.ledger
    ledger.submit()
    ledger.fail(ledger.claim_next(), StageFailed("no"))
    left = shelf.put(b"stored, but the database was away", known=False)
    assert [blob.digest for blob in shelf.collect().removed] == [left]


@pytest.mark.parametrize("known", [True, False])
def test_what_was_put_a_short_while_ago_stays(shelf, known):
    digest = shelf.put(b"young", known=known, age_s=DAY_S / 2)
    assert shelf.collect().removed == []
    assert shelf.store.has(digest)


def test_what_is_not_in_the_database_yet_has_an_hour_however_short_the_grace(shelf):
    shelf.put(b"on its way", known=False, age_s=60)
    assert shelf.collect(older_than_s=0).removed == []
    late = shelf.put(b"on its way", known=False, age_s=7200)
    assert [blob.digest for blob in shelf.collect(older_than_s=0).removed] == [late]


def test_who_asks_whether_a_blob_is_there_can_count_on_it(shelf):
    digest = shelf.put(b"asked for")
    with shelf.ledger.db.write() as session:
        assert artifacts.renew(session, digest) == 9
    assert shelf.collect().removed == []


def test_what_else_lies_in_the_store_is_left_alone(shelf):
    digest = shelf.put(b"garbage")
    strays = [
        shelf.store.root / "sha256" / ".DS_Store",
        shelf.store.place(digest).with_name(".nfs0001"),
    ]
    for stray in strays:
        stray.touch()
        os.utime(stray, (0, 0))
    assert [blob.digest for blob in shelf.collect().removed] == [digest]
    assert all(stray.exists() for stray in strays)


def test_a_dry_run_removes_nothing_and_reports_the_same(shelf):
    digests = {shelf.put(bytes([n])) for n in range(250)}
    before = shelf.collect(dry_run=True)
    assert all(map(shelf.store.has, digests))
    assert digests <= shelf.rows()
    after = shelf.collect()
    assert before.model_dump() | {"dry_run": False} == after.model_dump()
    assert {blob.digest for blob in after.removed} == digests


def test_what_an_interrupted_upload_left_goes(shelf):
    incoming = shelf.store.root / "incoming"
    incoming.mkdir(parents=True)
    for name, age_s in (("tmpold", 2 * DAY_S), ("tmpnew", 60)):
        (incoming / name).write_bytes(b"half of it")
        os.utime(incoming / name, (time.time() - age_s,) * 2)
    report = shelf.collect()
    assert (report.uploads, report.uploads_bytes) == (1, 10)
    assert [path.name for path in incoming.iterdir()] == ["tmpnew"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_blob_that_is_put_again_while_it_is_taken_out_of_its_place_stays(
    shelf, monkeypatch, when
):
    digest = shelf.put(b"wanted again")
    set_aside = LocalStore.set_aside

    def put_again(store, digest):
        if when == "before":
            shelf.put(b"wanted again", age_s=0)
        file = set_aside(store, digest)
        if when == "after":
            shelf.put(b"wanted again", age_s=0)
        return file

    monkeypatch.setattr(LocalStore, "set_aside", put_again)
    shelf.collect()
    assert shelf.store.place(digest).read_bytes() == b"wanted again"
    assert digest in shelf.rows()


def test_what_a_killed_gc_had_set_aside_is_put_back(shelf):
    digest = shelf.put(b"in between")
    shelf.store.set_aside(digest)
    assert not shelf.store.has(digest)
    report = shelf.collect()
    assert shelf.store.has(digest)
    assert report.removed == []  # as if it had been put now


def test_nothing_that_a_build_counts_on_is_lost_while_gc_runs_without_a_grace(shelf):
    # Uploads and submissions race a collector that takes whatever it may, at once.
    ledger, stop, accepted, refused = shelf.ledger, threading.Event(), [], []

    def keep_collecting():
        while not stop.is_set():
            shelf.collect(older_than_s=0)

    def upload_and_submit(number):
        for turn in range(8):
            digest = shelf.put(f"model {number}.{turn}".encode(), age_s=0)
            try:
                ledger.submit(
                    model=f"m{number}-{turn}", source={"digest": digest, "format": "onnx"}
                )
                accepted.append(digest)
            except NotFound:
                refused.append(digest)

    collector = threading.Thread(target=keep_collecting)
    clients = [threading.Thread(target=upload_and_submit, args=(n,)) for n in range(3)]
    for thread in (collector, *clients):
        thread.start()
    for thread in clients:
        thread.join(180)
    stop.set()
    collector.join(180)
    assert len(accepted) + len(refused) == 24
    assert accepted
    assert all(map(shelf.store.has, accepted))
    assert set(accepted) <= shelf.rows()
