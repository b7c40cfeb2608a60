"""What the worker makes of a message; what it does while the database is away."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from farm.builds import logs
from farm.database.tables import Job
from farm.errors import (
    CastFailed,
    ChildOutOfMemory,
    DatabaseUnavailable,
    FarmError,
    LeaseLost,
    StageInterrupted,
    StorageUnavailable,
)
from farm.fleet import workers
from farm.queue import leases, shown
from farm.specs.states import JobState
from farm.store import proof
from farm.store.base import Stored
from farm.store.local import LocalStore
from workers.runner import claims, task, transfers
from workers.runner import watch as watch_module
from workers.runner.made import Made
from workers.runner.shown import Flower
from workers.runner.store_watch import StoreWatch
from workers.runner.watch import Stopping, Watch


class Flaky:
    """A database that can't be reached for some times, or until it is told to be there."""

    def __init__(self, db, failures):
        self._db = db
        self.failures = failures

    @contextmanager
    def write(self):
        if self.failures > 0:
            self.failures -= 1
            raise DatabaseUnavailable("the database can't be reached: gone fishing")
        with self._db.write() as session:
            yield session

    read = write


class Watched:
    """The store, which can be used until a job was interrupted by it, or a test says so."""

    def __init__(self):
        self.doubted = 0
        self.usable = True

    def doubt(self):
        self.doubted += 1

    def is_usable(self):
        return self.usable


def context(db, lease_ttl_s=30.0):
    settings = SimpleNamespace(
        lease_ttl_s=lease_ttl_s,
        retry_first_s=15.0,
        retry_longest_s=60.0,
        worker_ttl_s=240.0,
        max_attempts=3,
    )
    stopping = threading.Event()
    return SimpleNamespace(
        db=db,
        stopping=stopping,
        transfers=transfers.Transfers(db, lease_s=lease_ttl_s, stopping=stopping),
        settings=settings,
        worker="cpu@here",
        held={},
        shunned={},
        store_watch=Watched(),
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(claims, "_RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(transfers, "_RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(claims, "_CLAIM_AGAIN_S", (0.01, 0.02))


def test_a_result_waits_for_a_database_that_is_away(ledger):
    ledger.submit()
    flaky = Flaky(ledger.db, failures=3)
    titles = claims.insist(context(flaky), lambda session: session.scalars(select(Job.title)).all())
    assert "export digits" in titles
    assert flaky.failures == 0


class FlakyStore:
    """A store that is away for the first few calls."""

    def __init__(self, failures):
        self.failures = failures
        self.taken = []

    def take(self, path):
        self._answer()
        self.taken.append(path)
        return Stored(digest="sha256:" + "a" * 64, bytes=7)

    def has(self, _digest):
        self._answer()
        return True

    def _answer(self):
        if self.failures > 0:
            self.failures -= 1
            raise StorageUnavailable("the store is being restarted")


@pytest.fixture
def kept(ledger, tmp_path):
    """Keeps what a job made, which took so long; returns the worker's context, and the store."""

    def keep(store, *, took_s=3600.0, lease_ttl_s=30.0):
        ledger.submit()
        claim = ledger.claim_next()
        here = context(ledger.db, lease_ttl_s)
        here.store = store
        made = Made(outputs={"onnx": tmp_path / "model.onnx"}, facts={})
        return here, lambda: task._keep(here, claim, made, took_s=took_s), claim

    return keep


def test_a_result_waits_for_a_store_that_is_away(ledger, kept):
    store = FlakyStore(failures=8)
    _, keep, claim = kept(store)
    keep()
    assert len(store.taken) == 1
    with ledger.db.read() as session:
        job = session.get_one(Job, claim.job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, claim.attempt)


def test_a_result_is_kept_for_as_long_as_it_took_to_make_it(kept, monkeypatch):
    monkeypatch.setattr(transfers, "_PATIENCE_S", (0.0, 600.0))
    # Each try takes a second of the thirty.
    clock = SimpleNamespace(monotonic=itertools.count().__next__, sleep=time.sleep)
    monkeypatch.setattr(transfers, "time", clock)
    store = FlakyStore(failures=10**6)
    _, keep, _ = kept(store, took_s=30.0)
    with pytest.raises(StorageUnavailable, match="being restarted"):
        keep()
    assert 10**6 - store.failures == 30


def test_a_worker_that_shuts_down_waits_for_no_store(kept):
    here, keep, _ = kept(FlakyStore(failures=10**6))
    here.stopping.set()
    with pytest.raises(StorageUnavailable):
        keep()


def test_a_result_that_another_attempt_took_over_isnt_kept_for_a_store_that_is_away(ledger, kept):
    store = FlakyStore(failures=10**6)
    _, keep, claim = kept(store, lease_ttl_s=0.3)
    with ledger.db.write() as session:
        session.get_one(Job, claim.job_id).attempt += 1
    with pytest.raises(StorageUnavailable):
        keep()


def test_a_claim_is_tried_again_before_its_message_is_given_up(ledger):
    ledger.submit()
    [job] = ledger.queued()
    with pytest.raises(DatabaseUnavailable):
        claims.claim(context(Flaky(ledger.db, failures=3)), job.id)
    claim = claims.claim(context(Flaky(ledger.db, failures=2)), job.id)
    assert claim.job_id == job.id


def test_a_submission_that_holds_the_only_job_makes_its_worker_come_again_and_not_go_away(ledger):
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer")
    ledger.submit()
    [job] = ledger.queued()
    with ThreadPoolExecutor(1) as pool:
        with ledger.db.write() as session:
            session.get_one(Job, job.id, with_for_update=True)
            claim = pool.submit(claims.claim, context(ledger.db), job.id)
            with pytest.raises(TimeoutError):
                claim.result(0.3)
        assert claim.result(60).job_id == job.id


def test_a_bug_is_not_taken_for_a_database_that_is_away(ledger):
    with pytest.raises(DBAPIError):
        claims.insist(
            context(ledger.db), lambda session: session.execute(text("SELECT FROM WHERE"))
        )


def test_a_worker_that_shuts_down_waits_for_no_database(ledger):
    here = context(Flaky(ledger.db, failures=10**6))
    here.stopping.set()
    with pytest.raises(DatabaseUnavailable):
        claims.insist(here, ledger.fleet)


def test_a_job_goes_on_without_the_database_until_its_lease_has_run_out(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    start = time.monotonic()
    watch = Watch(context(Flaky(ledger.db, failures=10**6), lease_ttl_s=0.3), claim)
    watch._text = "printed meanwhile"
    with pytest.raises(LeaseLost, match="past its lease"):
        _look_until_it_raises(watch)
    assert time.monotonic() - start >= 0.3


def _look_until_it_raises(watch):
    while True:
        assert watch._look() is False
        time.sleep(0.01)


def test_what_a_job_printed_while_the_database_was_away_is_kept(ledger, monkeypatch):
    monkeypatch.setattr(watch_module, "_LOG_FLUSH_S", 0.0)
    build = ledger.submit()
    claim = ledger.claim_next()
    watch = Watch(context(Flaky(ledger.db, failures=2)), claim)
    watch._text = "printed meanwhile"
    for _ in range(4):
        watch._look()
    with ledger.db.read() as session:
        assert "printed meanwhile" in logs.log(session, build, None)


class Heard:
    """Flower, as the worker tells it of attempts."""

    def __init__(self):
        self.told = []
        self.tell_also = lambda: None

    def __getattr__(self, name):
        def hears(*given):
            self.told.append((name, *given))
            self.tell_also()

        return hears


class Bells:
    """A doorbell that counts."""

    def __init__(self):
        self.rung, self.passed_on = [], []

    def ring(self, ids):
        self.rung += ids

    def pass_on(self, job_id):
        self.passed_on.append(job_id)


def receive(ledger, monkeypatch, job):
    """Let a worker receive a job's message; return what it did, and its doorbell."""
    worked, bells = [], Bells()
    here = context(ledger.db)
    here.doorbell = bells
    here.flower = Heard()
    monkeypatch.setattr(task, "_work", lambda *a: worked.append(a[1]) or [])
    task._run("a task", here, job.id)
    return worked[0], bells


@pytest.mark.parametrize("announced", [True, False])
def test_a_message_that_another_job_took_is_sent_again_if_that_ones_own_was_not(
    ledger, monkeypatch, announced
):
    # Otherwise there would be more queued jobs than messages, and one would wait for the sweep.
    for number, priority in enumerate((3, 8)):
        ledger.submit(model=f"m{number}", source=ledger.upload(number), priority=priority)
    slow, fast = sorted(ledger.queued(), key=lambda job: job.priority)
    with ledger.db.write() as session:
        session.get_one(Job, slow.id).rung_at = slow.created_at
        session.get_one(Job, fast.id).rung_at = fast.created_at if announced else None
    claim, bells = receive(ledger, monkeypatch, slow)
    assert claim.job_id == fast.id
    assert bells.passed_on == ([] if announced else [slow.id])


def test_a_job_that_this_machine_failed_is_left_to_another_while_there_is_one(ledger, monkeypatch):
    ledger.submit()
    [job] = ledger.queued()
    here, bells = context(ledger.db), Bells()
    here.doorbell, here.flower = bells, Heard()
    monkeypatch.setattr(task, "_PASS_ON_S", 0.0)

    def fails(*_):
        raise StorageUnavailable("the artifact store isn't at /mnt/store")

    monkeypatch.setattr(task, "_work", fails)
    with pytest.raises(StorageUnavailable):
        task._run("a task", here, job.id)
    with ledger.db.write() as session:
        session.get_one(Job, job.id).not_before = None
    ledger.worker("cpu@there")
    assert task._run("a task", here, job.id).startswith("left for another worker")
    assert bells.passed_on == [job.id]
    with ledger.db.read() as session:
        assert session.get_one(Job, job.id).state == JobState.QUEUED
    with ledger.db.write() as session:
        workers.left(session, "cpu@there")
    monkeypatch.setattr(task, "_work", lambda *_: [])
    assert task._run("a task", here, job.id) == "succeeded", "there is nobody else"


def test_nothing_is_claimed_while_the_store_cant_be_used(ledger, monkeypatch):
    ledger.submit()
    [job] = ledger.queued()
    here, bells = context(ledger.db), Bells()
    here.doorbell, here.flower = bells, Heard()
    monkeypatch.setattr(task, "_PASS_ON_S", 0.0)
    here.store_watch.usable = False
    assert task._run("a task", here, job.id).startswith("not claimed: the store")
    ledger.worker("cpu@there")
    assert task._run("a task", here, job.id).startswith("left for another worker")
    assert bells.passed_on == [job.id]
    with ledger.db.read() as session:
        found = session.get_one(Job, job.id)
        assert (found.state, found.attempt) == (JobState.QUEUED, job.attempt)


def test_a_store_that_interrupts_a_job_is_looked_at_before_the_next(ledger, tmp_path, caplog):
    store = LocalStore(tmp_path / "store")
    proof.adopt(ledger.db, store)
    watch = StoreWatch(ledger.db, store)
    assert watch.is_usable()
    (tmp_path / "store" / "id").rename(tmp_path / "id")
    assert watch.is_usable(), "nobody doubts it"
    watch.doubt()
    assert not watch.is_usable()
    assert "no jobs are taken" in caplog.text
    assert "FARM_STORE" in caplog.text
    (tmp_path / "id").rename(tmp_path / "store" / "id")
    assert watch.is_usable()


ENDS = {
    "succeeded": ([], "succeeded", JobState.SUCCEEDED),
    "failed": (CastFailed("an operator is unknown"), "failed", JobState.FAILED),
    "buggy": (ZeroDivisionError("x"), "failed", JobState.FAILED),
    "interrupted": (StorageUnavailable("the store is away"), "failed", JobState.QUEUED),
    "refused": (LeaseLost("job 1 isn't held by attempt 1 any more"), "failed", JobState.RUNNING),
    "with other tools": (task._OtherTools("torch 1 → 2"), "interrupted", JobState.QUEUED),
    "given back": (Stopping(), "interrupted", JobState.RUNNING),
    "cancelled": (task._Cancelled(), "cancelled", JobState.RUNNING),
}


@pytest.mark.parametrize("end", ENDS)
def test_flower_is_told_how_an_attempt_ended_once_the_database_has_it(ledger, monkeypatch, end):
    given, subject, state = ENDS[end]
    ledger.submit()
    [job] = ledger.queued()
    here = context(ledger.db)
    here.doorbell, here.flower = Bells(), Heard()
    states = []

    def works(_context, claim):
        if given == []:
            return ledger.succeed(claim)
        raise given

    here.flower.tell_also = lambda: states.append(JobState(ledger.reload(job).state))
    monkeypatch.setattr(task, "_work", works)
    with suppress(FarmError, ZeroDivisionError, task._OtherTools):
        task._run("a message", here, job.id)
    assert [one[0] for one in here.flower.told] == ["began", subject, "left"]
    assert here.flower.told[1][1].job_id == job.id
    assert states[1] == state


@pytest.fixture
def ends(ledger, monkeypatch):
    """Lets the only job's stage end by an error, once something else has happened meanwhile; the job then."""
    ledger.submit()
    [job] = ledger.queued()
    here = context(ledger.db)
    here.doorbell, here.flower = Bells(), Heard()

    def end(error, *, later_s=0.0, meanwhile=lambda _here: None):
        def works(*_):
            meanwhile(here)
            raise error

        monkeypatch.setattr(watch_module, "_LATER_S", later_s)
        monkeypatch.setattr(task, "_work", works)
        with suppress(FarmError):
            task._run("a message", here, job.id)
        with ledger.db.write() as session:
            leases.release(session, here.worker, here.held)  # as when it has ended
            found = session.get_one(Job, job.id)
            found.not_before = None
            return found.state, found.attempt, found.attempt - found.first_attempt + 1

    return end


def in_a_moment(here):
    threading.Timer(0.1, here.stopping.set).start()


def test_a_job_whose_stage_was_ended_with_its_worker_is_given_back_and_costs_no_attempt(ends):
    said = StageInterrupted("the stage was ended from outside of the farm")
    assert ends(said, later_s=180.0, meanwhile=in_a_moment) == (JobState.QUEUED, 2, 1)


def test_a_job_whose_stage_alone_is_ended_from_outside_is_tried_again_as_often_as_others(ends):
    said = StageInterrupted("the stage was ended from outside of the farm")
    assert [ends(said) for _ in range(3)] == [
        (JobState.QUEUED, 2, 2),
        (JobState.QUEUED, 3, 3),
        (JobState.FAILED, 3, 3),
    ]


def test_a_job_without_memory_fails_though_its_worker_is_stopped_because_of_it(ends):
    # Or it would go over the fleet, and stop one worker after another.
    stopped = ends(ChildOutOfMemory(), meanwhile=lambda here: here.stopping.set())
    assert stopped == (JobState.FAILED, 1, 1)


def test_a_job_that_a_worker_claims_while_it_shuts_down_is_given_back_before_it_is_begun(ledger):
    ledger.submit()
    [job] = ledger.queued()
    here = context(ledger.db)  # which has nothing that a stage needs
    here.doorbell, here.flower = Bells(), Heard()
    here.stopping.set()
    assert task._run("a message", here, job.id).startswith("given back")
    assert here.held == {job.id: 1}


class Consumer:
    """Celery's consumer as far as it sends events."""

    def __init__(self):
        self.event_dispatcher, self.sent = self, []

    def send(self, kind, **fields):
        self.sent.append((kind, fields))


def test_events_carry_the_attempts_own_id_and_the_errors_code(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    flower, consumer = Flower(), Consumer()
    flower.progressed(claim, "nobody listens before the worker is ready")
    flower._ready(consumer)
    flower.began("a message", claim)
    flower.progressed(claim, "exporting 50%")
    flower.failed(claim, CastFailed("x" * 5000, hint="name it"))
    flower.left("a message")
    kinds = [kind.removeprefix("task-") for kind, _ in consumer.sent]
    assert kinds == ["received", "started", "progress", "failed"]
    assert {fields["uuid"] for _, fields in consumer.sent} == {shown.task_id(claim.job_id, 1)}
    assert {(fields["job"], fields["attempt"]) for _, fields in consumer.sent} == {
        (claim.job_id, 1)
    }
    failed = consumer.sent[-1][1]
    assert failed["exception"].startswith("cast-failed: xxx")
    assert len(failed["exception"]) <= 1000
    assert failed["traceback"] is None
    assert consumer.sent[0][1]["name"] == "export digits"
