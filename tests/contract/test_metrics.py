"""What ``/metrics`` tells, and that its counters never go back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text, update
from sqlalchemy.exc import OperationalError

from farm.api.app import create_app
from farm.database.base import now
from farm.database.tables import Job, Worker
from farm.errors import ChildTimedOut, FarmError, StorageUnavailable
from farm.fleet import workers
from farm.machine.load import GpuLoad
from farm.queue import jobs, leases
from farm.queue.jobs import Output
from farm.specs.monitoring import METRICS, Form
from tests.contract.conftest import Api, request
from tests.ledger import Ledger
from tests.promtool import promtool

pytestmark = pytest.mark.services

CPU = {"queue": "cpu", "runtime": "", "gpu": "cpu"}


@pytest.fixture
def ledger(db) -> Ledger:
    return Ledger(db)


@pytest.fixture
def figures(api):
    return api.app.state.services.figures


class Scrape:
    """One answer of ``/metrics``, as Prometheus reads it."""

    def __init__(self, api: Api) -> None:
        api.app.state.services.figures.forget()
        answer = api.get("/metrics")
        assert answer.status_code == 200
        self.text = answer.text
        self.families = {one.name: one for one in text_string_to_metric_families(self.text)}
        self.samples = [sample for one in self.families.values() for sample in one.samples]

    def all(self, name: str, **labels: str) -> list[float]:
        return [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def __call__(self, name: str, **labels: str) -> float:
        [value] = self.all(name, **labels)
        return value

    def counters(self) -> dict:
        """Everything that must never go down."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {
            (one.name, tuple(sorted(one.labels.items()))): one.value
            for one in self.samples
            if one.name.startswith("farm_") and one.name.endswith(ends)
        }


def submit(api: Api, **changes) -> str:
    answer = api.post("/v1/builds", json=request(api, **changes))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finish(ledger: Ledger) -> None:
    while queued := ledger.queued():
        ledger.succeed(ledger.claim(queued[0]))


def test_a_queue_tells_its_depth_its_age_and_its_workers(api, db, ledger):
    ledger.worker()
    empty = Scrape(api)
    assert empty("farm_queued_jobs", **CPU) == 0
    assert empty("farm_queue_age_seconds", **CPU) == 0
    assert empty("farm_queue_workers", **CPU) == 1
    assert empty("farm_queue_idle_workers", **CPU) == 1
    submit(api)
    with db.write() as session:
        session.execute(
            update(Job).where(Job.state == "queued").values(queued_at=now() - timedelta(hours=1))
        )
    full = Scrape(api)
    assert full("farm_queued_jobs", **CPU) == 1
    assert 3600 <= full("farm_queue_age_seconds", **CPU) < 4200
    assert full("farm_builds", state="queued") == 1
    assert full("farm_jobs", kind="export", state="queued") == 1
    assert full("farm_jobs", kind="build", state="waiting") == 1
    ledger.claim_next(owner="cpu@here")
    begun = Scrape(api)
    assert begun("farm_queued_jobs", **CPU) == 0
    assert begun("farm_queue_age_seconds", **CPU) == 0
    assert begun("farm_running_jobs", **CPU) == 1
    assert begun("farm_queue_workers", **CPU) == 1
    assert begun("farm_queue_idle_workers", **CPU) == 0
    assert begun("farm_queue_idle_workers", queue="tensorrt-rtx.cpu") == 0


def test_every_gpu_has_its_queue_even_without_a_worker(api):
    scrape = Scrape(api)
    assert scrape("farm_queued_jobs", gpu="sm_89", runtime="tensorrt") == 0
    assert scrape("farm_queue_workers", gpu="sm_89", runtime="tensorrt") == 0


def test_tags_of_slices_that_somebody_typed_become_no_labels(api, ledger):
    ledger.worker()
    api.app.state.services._known_fleet = None
    for memory in range(10, 15):
        submit(api, targets=[f"tensorrt:h200-1g.{memory}gb"])
    while job := ledger.first_in_line("cpu"):
        ledger.succeed(ledger.claim(job))
    scrape = Scrape(api)
    assert "1g." not in scrape.text
    assert scrape("farm_queued_jobs", queue="other") == 5


def test_builds_and_jobs_are_counted_as_they_end(api, ledger):
    ledger.worker()
    submit(api)
    finish(ledger)
    scrape = Scrape(api)
    assert scrape("farm_builds_submitted_total") == 1
    assert scrape("farm_builds_ended_total", state="succeeded") == 1
    assert scrape("farm_build_start_delay_seconds_count") == 1
    assert scrape("farm_build_duration_seconds_count", state="succeeded") == 1
    for kind in ("export", "cast", "build", "measure"):
        assert scrape("farm_jobs_ended_total", kind=kind, state="succeeded") == 1
        assert scrape("farm_job_attempts_total", kind=kind) == 1
        assert scrape("farm_job_duration_seconds_count", kind=kind, state="succeeded") == 1
        assert scrape("farm_jobs_wanted_total", kind=kind, reuse="ran") == 1
        assert scrape("farm_jobs_wanted_total", kind=kind, reuse="cached") == 0
    assert sum(scrape.all("farm_job_queue_seconds_count")) == 4


def test_what_is_reused_is_counted_by_kind(api, ledger):
    ledger.worker()
    submit(api)
    api.app.state.services._known_fleet = None
    ledger.succeed(ledger.claim_next())
    submit(api)
    scrape = Scrape(api)
    assert scrape("farm_jobs_wanted_total", kind="export", reuse="cached") == 1
    assert scrape("farm_jobs_wanted_total", kind="cast", reuse="joined") == 1
    assert scrape("farm_jobs_wanted_total", kind="cast", reuse="ran") == 1


def test_failures_are_counted_by_their_code_and_only_by_codes_of_the_farm(api, db, ledger):
    ledger.worker()
    submit(api)
    ledger.fail(ledger.claim_next(), ChildTimedOut())
    one = Scrape(api)
    ended = "farm_jobs_ended_total"
    assert one(ended, kind="export", state="failed", code="child-timed-out") == 1
    assert one(ended, kind="build", state="failed", code="input-failed") == 1
    assert one("farm_builds_ended_total", state="failed") == 1
    submit(api, model="other", precisions=["fp32"])
    typed = FarmError("whatever")
    typed.code = "a-model-named-so"
    ledger.fail(ledger.claim_next(), typed)
    two = Scrape(api)
    assert "a-model-named-so" not in two.text
    assert two(ended, kind="export", state="failed", code="other") == 1


def test_a_lost_lease_and_its_next_attempt_are_counted(api, db, ledger):
    ledger.worker()
    submit(api)
    ledger.claim_next()
    with db.read() as session:
        [held] = leases.running(session)
    with db.write() as session:
        leases.reap(session, held, max_attempts=3)
    one = Scrape(api)
    assert one("farm_leases_lost_total", kind="export") == 1
    assert one("farm_jobs_requeued_total", kind="export", reason="lease-expired") == 1
    claim = ledger.claim_next()
    assert Scrape(api)("farm_job_attempts_total", kind="export") == 2
    with db.write() as session:
        away = StorageUnavailable("the store is away")
        waits = (0.1, 0.2)
        leases.interrupt(session, claim.job_id, claim.attempt, away, max_attempts=1, wait_s=waits)
    two = Scrape(api)
    assert two("farm_leases_lost_total", kind="export") == 1
    assert two("farm_jobs_requeued_total", kind="export", reason="interrupted") == 0
    assert two("farm_jobs_ended_total", kind="export", code="stage-failed") == 1


def test_what_is_rolled_back_is_not_counted(api, db, ledger):
    ledger.worker()
    submit(api)
    claim = ledger.claim_next()

    def succeed_and_break() -> None:
        with db.write() as session:
            output = Output(digest=f"sha256:{claim.job_id:064x}", bytes=1)
            jobs.succeed(session, claim.job_id, claim.attempt, outputs={"onnx": output}, facts={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        succeed_and_break()
    assert Scrape(api)("farm_jobs_ended_total", kind="export", state="succeeded") == 0


def test_counters_survive_a_restart_and_deletions(api, db, ledger, made, settings):
    made()
    before = Scrape(api).counters()
    told = ("farm_jobs_ended_total", (("code", ""), ("kind", "build"), ("state", "succeeded")))
    assert before[told] == 1
    assert api.request("DELETE", "/v1/models/digits").status_code == 200
    deleted = Scrape(api)
    assert sum(deleted.all("farm_engines")) == 0
    assert all(deleted.counters()[key] >= value for key, value in before.items())
    again = create_app(settings)
    try:
        after = Scrape(Api(again)).counters()
    finally:
        again.state.services.db.dispose()
    ours = {key: value for key, value in before.items() if not key[0].startswith("farm_http")}
    assert {key: after[key] for key in ours} == {key: deleted.counters()[key] for key in ours}


def test_a_deleted_result_is_not_an_end_of_its_job(api, made):
    made()
    before = Scrape(api)
    api.request("DELETE", "/v1/models/digits")
    after = Scrape(api)
    for state in ("succeeded", "failed"):
        ended = ("farm_jobs_ended_total", state)
        assert sum(after.all(ended[0], state=state)) == sum(before.all(ended[0], state=state))


def test_a_build_that_is_retried_ends_twice_and_is_timed_once(api, ledger):
    ledger.worker()
    build = submit(api)
    ledger.fail(ledger.claim_next(), ChildTimedOut())
    api.app.state.services._known_fleet = None
    assert api.post(f"/v1/builds/{build}/retry").status_code == 200
    finish(ledger)
    scrape = Scrape(api)
    assert scrape("farm_builds_submitted_total") == 1
    assert scrape("farm_builds_ended_total", state="failed") == 1
    assert scrape("farm_builds_ended_total", state="succeeded") == 1
    assert sum(scrape.all("farm_build_duration_seconds_count")) == 1
    assert scrape("farm_build_start_delay_seconds_count") == 1


def test_workers_are_told_by_their_state(api, db, ledger):
    for name in ("online", "deaf", "silent", "left"):
        ledger.worker(name)
    with db.write() as session:
        workers.seen(session, "deaf", unread=["cpu"])
        workers.left(session, "left")
        session.get_one(Worker, "silent").last_seen_at = now() - timedelta(minutes=5)
    scrape = Scrape(api)
    for state in ("online", "deaf", "silent", "left"):
        assert scrape("farm_workers", state=state) == 1
    assert scrape("farm_queue_workers", queue="cpu") == 1


def test_a_gpu_is_told_as_its_worker_last_saw_it(api, db, ledger):
    ledger.worker("gpu0@there", ("cpu",), gpu="NVIDIA L4", tags=("sm_89", "l4"))
    load = GpuLoad(utilization=0.5, memory_used_bytes=2**30, power_w=61.5)
    with db.write() as session:
        workers.seen(session, "gpu0@there", load=load)
    scrape = Scrape(api)
    gpu = {"worker": "gpu0@there", "gpu": "l4"}
    assert scrape("farm_gpu_utilization_ratio", **gpu) == 0.5
    assert scrape("farm_gpu_memory_used_bytes", **gpu) == 2**30
    assert scrape("farm_gpu_power_watts", **gpu) == 61.5
    assert scrape.all("farm_gpu_temperature_celsius", **gpu) == []
    with db.write() as session:
        workers.left(session, "gpu0@there")
    assert Scrape(api).all("farm_gpu_utilization_ratio") == []


def test_the_store_is_told_by_kind_once_it_was_counted(api, made):
    made()
    assert Scrape(api).all("farm_store_bytes") == []
    api.app.state.services.stocktaker.count()
    scrape = Scrape(api)
    usage = api.get("/v1/usage").json()["kinds"]
    assert scrape("farm_store_bytes", kind="sources") == usage["sources"]["bytes"] > 0
    assert scrape("farm_store_files", kind="engines") == usage["engines"]["files"] == 1
    assert scrape("farm_store_free_bytes") > 0


def test_requests_are_counted_by_their_routes_template(api):
    api.get("/v1/builds/zzzzzzzz")
    api.get("/v1/no-such-thing")
    api.request("BREW", "/v1/builds")
    Api(api.app, "farm_wrong").get("/v1/builds")
    scrape = Scrape(api)
    told = "farm_http_requests_total"
    assert scrape(told, method="GET", route="/v1/builds/{build_id}", status="404") == 1
    assert scrape(told, method="GET", route="unrouted", status="404") == 1
    assert scrape(told, method="GET", route="unrouted", status="401") == 1
    assert sum(scrape.all(told, method="other")) == 1
    assert "zzzzzzzz" not in scrape.text
    assert "no-such-thing" not in scrape.text


def test_a_database_that_is_away_leaves_this_processs_own_metrics(api, figures, monkeypatch):
    open_to_all = Api(api.app, None)
    open_to_all.get("/healthz")
    figures.forget()

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr("sqlalchemy.orm.Session.execute", away)
    scrape = Scrape(open_to_all)
    assert scrape("farm_database_up") == 0
    assert scrape.all("farm_queued_jobs") == []
    assert scrape("farm_http_requests_total", route="/healthz") == 1


def test_scrapes_at_once_read_the_database_once(api, db, figures, monkeypatch):
    statements = []
    Scrape(api)

    @event.listens_for(db.engine, "before_cursor_execute")
    def _note(_connection, _cursor, statement, *_):
        statements.append(statement)

    try:
        monkeypatch.setattr("farm.monitoring.figures._FRESH_S", 3600.0)
        figures.forget()
        [list(figures.collect()) for _ in range(5)]
    finally:
        event.remove(db.engine, "before_cursor_execute", _note)
    reads = [one for one in statements if one.startswith("SELECT")]
    assert len(reads) == 6  # builds, workers, jobs, their owners, engines, tallies


def test_no_statement_of_a_scrape_reads_all_jobs_or_builds(api, db, figures):
    if not db.is_sqlite:
        pytest.skip("SQLite tells its plan without data")
    seen = []

    @event.listens_for(db.engine, "before_cursor_execute")
    def _note(_connection, _cursor, statement, parameters, *_):
        seen.append((statement, parameters))

    try:
        list(figures.collect())
    finally:
        event.remove(db.engine, "before_cursor_execute", _note)
    selects = [one for one in seen if one[0].startswith("SELECT")]
    with db.engine.connect() as connection:
        plans = [
            row[3]
            for statement, parameters in selects
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    read = [one for one in plans if any(table in one for table in ("jobs", "builds", "engines"))]
    assert read
    of_running = "SEARCH jobs USING INDEX ix_jobs_live (state=?)"
    assert all("COVERING INDEX" in one or one == of_running for one in read), read


@pytest.mark.usefixtures("patient")
def test_counting_at_once_loses_nothing(api, db):
    from concurrent.futures import ThreadPoolExecutor

    from farm.database import tallies
    from farm.specs import monitoring

    def count(number: int) -> None:
        with db.write() as session:
            kinds = ["cast", "build"] if number % 2 else ["build", "cast"]
            for kind in kinds:
                tallies.count(session, monitoring.LEASES_LOST, kind)
            tallies.observe(session, monitoring.BUILD_START_DELAY, float(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(40)))
    scrape = Scrape(api)
    assert scrape("farm_leases_lost_total", kind="cast") == 40
    assert scrape("farm_leases_lost_total", kind="build") == 40
    assert scrape("farm_build_start_delay_seconds_count") == 40
    assert scrape("farm_build_start_delay_seconds_sum") == sum(range(40))
    assert scrape("farm_build_start_delay_seconds_bucket", le="5.0") == 6
    assert scrape("farm_build_start_delay_seconds_bucket", le="+Inf") == 40


def test_buckets_of_an_earlier_version_are_told_in_those_of_this_one(api, db):
    with db.write() as session:
        session.execute(
            text(
                "INSERT INTO tallies VALUES"
                " ('farm_build_start_delay_seconds', '[]', '3.5', 0, 2, 6.0),"
                " ('farm_gone_total', '[]', '', 0, 1, 0.0)"
            )
        )
    scrape = Scrape(api)
    assert scrape("farm_build_start_delay_seconds_bucket", le="1.0") == 0
    assert scrape("farm_build_start_delay_seconds_bucket", le="5.0") == 2
    assert "farm_gone_total" not in scrape.text


def test_what_is_told_is_what_is_declared(api, db, ledger, made):
    ledger.worker("gpu0@there", ("cpu",), gpu="NVIDIA L4", tags=("sm_89", "l4"))
    load = GpuLoad(utilization=0, memory_used_bytes=0, memory_bytes=1, power_w=0, temperature_c=40)
    with db.write() as session:
        workers.seen(session, "gpu0@there", load=load)
    made()
    api.app.state.services.stocktaker.count()
    scrape = Scrape(api)
    told = {one.name: one for one in scrape.samples if one.name.startswith("farm_")}
    declared = {name: metric for metric in METRICS for name in metric.series}
    assert told.keys() == declared.keys()
    for one in scrape.samples:
        if one.name in declared:
            assert one.labels.keys() - {"le"} == set(declared[one.name].labels), one
    for metric in METRICS:
        family = scrape.families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.form, metric.text)
        assert metric.form is not Form.COUNTER or metric.name.endswith("_total")


def test_promtool_finds_nothing_to_say_about_the_metrics(api, made):
    made()
    api.app.state.services.stocktaker.count()
    assert promtool("check", "metrics", given=Scrape(api).text) == ""
