"""What Flower makes of lost events, killed workers and its own absence, by the database."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from farm.errors import CastFailed
from farm.local.flower.mirror import Mirror
from farm.local.flower.queues import Queues
from farm.local.flower.tasks import Attempts, AttemptTask
from farm.queue import attempts, shown
from farm.specs.states import JobState
from tests.ledger import DATA, Ledger

WORKER = "cpu@mirror"


class Loop:
    """An event loop that does at once what it is given."""

    def add_callback(self, work) -> None:
        work()


class Site:
    """Flower's state beside a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.start()

    def start(self) -> None:
        self.state = Attempts(max_tasks_in_memory=100, max_workers_in_memory=10)
        queues = Queues(ttl_s=30)
        self.mirror = Mirror(self.ledger.db, self.state, queues, Loop())
        self.mirror._look()

    def look(self) -> None:
        # What has ended is believed to be lost when it is seen a second time.
        self.mirror._look()
        self.mirror._look()

    def hears(self, subject: str, claim, sender: str = WORKER, **fields) -> None:
        told = shown.attempt_fields(claim.job_id, claim.attempt, claim.key)
        event = {"type": f"task-{subject}", "hostname": sender, "local_received": 1.0}
        self.state.event(told | event | {"timestamp": 1.0, "clock": 1} | fields)

    def began(self, claim) -> None:
        self.hears("received", claim, name=claim.title)
        self.hears("started", claim)

    def task(self, claim) -> AttemptTask:
        return self.state.tasks[shown.task_id(claim.job_id, claim.attempt)]


@pytest.fixture
def site(ledger):
    return Site(ledger)


def test_an_attempt_whose_worker_was_killed_turns_red(site):
    build = site.ledger.submit()
    claim = site.ledger.claim_next(owner=WORKER)
    site.began(claim)
    site.look()
    task = site.task(claim)
    assert (task.state, task.build, task.model) == ("STARTED", build, "digits@1")
    site.ledger.reap()
    site.look()
    assert task.state == "FAILURE"
    assert task.exception == f"interrupted: worker {WORKER} let its lease expire"
    again = site.ledger.claim_next(owner=WORKER)
    assert again.attempt == 2
    site.began(again)
    site.ledger.succeed(again)
    site.look()
    assert (site.task(again).state, task.state) == ("SUCCESS", "FAILURE")
    assert site.task(again).runtime >= 0


def test_a_killed_workers_late_events_change_nothing(site):
    site.ledger.submit()
    claim = site.ledger.claim_next(owner=WORKER)
    site.began(claim)
    site.ledger.reap()
    site.look()
    site.hears("progress", claim, kwargs="calibrating 50%")
    assert site.task(claim).state == "FAILURE"


def test_progress_is_shown_and_leaves_the_state(site):
    site.ledger.submit()
    claim = site.ledger.claim_next(owner=WORKER)
    site.began(claim)
    site.hears("progress", claim, kwargs="exporting 50%")
    assert (site.task(claim).state, site.task(claim).kwargs) == ("STARTED", "exporting 50%")
    # Celery ranks states of one's own above it.
    site.hears("revoked", claim)
    assert site.task(claim).state == "REVOKED"


def test_a_job_cancelled_in_its_queue_leaves_it_here_too(site):
    build = site.ledger.submit()
    (job,) = site.ledger.queued()
    fields = shown.attempt_fields(job.id, 1, job.key)
    site.state.event(fields | {"type": "task-sent", "hostname": shown.DOORBELL, "timestamp": 1.0,
                               "local_received": 1.0, "clock": 1, "name": job.title})  # fmt: skip
    site.look()
    task = site.state.tasks[fields["uuid"]]
    assert task.state == "PENDING"
    site.ledger.cancel(build)
    site.look()
    assert task.state == "REVOKED"
    assert task.worker is None


def test_a_restarted_flower_shows_what_was(site):
    ledger = site.ledger
    ledger.submit()
    first = ledger.claim_next(owner=WORKER)
    ledger.reap()
    second = ledger.claim_next(owner=WORKER)
    ledger.succeed(second)
    third = ledger.claim_next(owner=WORKER)
    ledger.fail(third, CastFailed("an operator is unknown", hint="name it"))
    before = _counted()
    site.start()
    found = {(one.job, one.attempt): one.state for one in site.state.tasks.values()}
    assert found == {
        (first.job_id, 1): "FAILURE",
        (first.job_id, 2): "SUCCESS",
        (third.job_id, 1): "FAILURE",
    }
    assert site.task(third).exception == "cast-failed: an operator is unknown (hint: name it)"
    assert site.task(third).worker.hostname == WORKER
    assert not site.task(third).worker.alive
    assert site.state.counter[WORKER]["task-failed"] == 2
    assert _counted() == before, "what was before it started isn't counted again"
    assert site.state.open(10) == []


def test_its_rows_are_found_by_model_and_build(site):
    build = site.ledger.submit()
    claim = site.ledger.claim_next(owner=WORKER)
    site.start()
    for words in (build, "digits@1", f"job={claim.job_id}"):
        page = site.state.search_engine.search(site.state.tasks, words)
        assert page.task_ids == [shown.task_id(claim.job_id, 1)], words


def test_tasks_of_other_programs_are_no_attempts(site):
    site.ledger.submit()
    claim = site.ledger.claim_next(owner=WORKER)
    for fields in ({"job": "<b>", "attempt": 1}, {"job": claim.job_id, "attempt": 1}, {}):
        event = {"type": "task-received", "hostname": "x", "timestamp": 1.0, "local_received": 1.0}
        site.state.event(event | {"clock": 1, "uuid": f"u{fields}", "name": "a.task"} | fields)
    AttemptTask.farm_url = "http://farm"
    try:
        site.look()
        for one in site.state.tasks.values():
            if one.uuid.startswith("u"):
                assert (one.job_page, one.args, one.build) == (None, None, None)
    finally:
        AttemptTask.farm_url = ""


def test_metrics_name_the_stage_whatever_the_title(site):
    site.ledger.submit(model="secret-model")
    claim = site.ledger.claim_next(owner=WORKER)
    site.began(claim)
    site.hears("started", claim, name="whoever made this up")
    names = {sample.labels["task"] for sample in _samples() if sample.labels["worker"] == WORKER}
    assert names <= {"export", "cast", "build", "other"}
    assert "export" in names


def test_titles_are_forgotten_with_their_tasks(site):
    site.state = Attempts(max_tasks_in_memory=5, max_workers_in_memory=10)
    for number in range(50):
        site.ledger.submit(model=f"m{number}", source=site.ledger.upload(number))
        site.began(site.ledger.claim_next())
        site.state.open(100)
    assert len(site.state.tasks) == 5
    assert len(site.state.tasks_by_type) <= 11
    assert len(site.state.task_types()) <= 11
    assert len(site.state.open(100)) == 5


def test_the_sender_of_messages_never_counts_as_a_worker_that_left(site):
    site.ledger.submit()
    (job,) = site.ledger.queued()
    event = {"type": "task-sent", "hostname": shown.DOORBELL, "timestamp": 1.0, "clock": 1}
    fields = shown.attempt_fields(job.id, 1, job.key)
    site.state.event(fields | event | {"local_received": 1.0, "name": job.title})
    site.state.metrics.remove_workers({shown.DOORBELL, WORKER})
    left = {sample.labels["worker"] for sample in _samples()}
    assert shown.DOORBELL in left
    assert WORKER not in left


def _samples():
    (metric,) = (one for one in REGISTRY.collect() if one.name == "flower_events")
    return [sample for sample in metric.samples if sample.name.endswith("_total")]


def _counted() -> dict[str, float]:
    return {str(sample.labels): sample.value for sample in _samples()}


def test_the_database_tells_of_every_attempt(ledger):
    asked = {"precisions": ["fp16", "int8"], "calibration": {"digest": DATA}}
    build = ledger.submit(**asked)
    claim = ledger.claim_next()
    ledger.reap()
    ledger.claim_next()
    other = ledger.submit(**asked)
    with ledger.db.read() as session:
        found = attempts.of_jobs(session, list(ledger.jobs_of(build)))
        ended = attempts.ended(session, [(claim.job_id, 1), (claim.job_id, 2), (10**9, 1)])
    assert ended == {(claim.job_id, 1)}
    first, second = (one for one in found if one.job.job_id == claim.job_id)
    assert (first.end, second.end) == (JobState.FAILED, None)
    assert first.queued_at <= first.started_at <= first.ended_at == second.queued_at
    assert (first.job.build, list(first.job.other_builds)) == (build, [other])
    cast = next(one for one in found if one.job.title == "cast digits:fp16")
    assert (cast.queued_at, cast.started_at, cast.job.precision) == (None, None, "fp16")
    engine = next(one for one in found if one.job.title == "build digits:int8@sm_89")
    assert (engine.job.gpu, engine.job.stage) == ("sm_89", "build")


def test_an_attempts_id_is_the_same_everywhere():
    assert shown.task_id(42, 1) == "a93aea71-42f8-5dd9-8be4-ad5a13bab09f"
    assert len({shown.task_id(job, attempt) for job in (1, 11) for attempt in (1, 11)}) == 4
    assert shown.task_page("http://flower:5555", 42, 1) == (
        f"http://flower:5555/task/{shown.task_id(42, 1)}"
    )
    assert shown.task_page("", 42, 1) is None
