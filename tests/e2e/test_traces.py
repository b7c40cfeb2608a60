"""One trace and one set of log records, from a command through the API and a worker to the job's process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.local import up
from tests.collector import Collector, Seen, collecting
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import LiveFarm, wait_until

pytestmark = pytest.mark.slow

INTERNAL, SERVER, CLIENT, CONSUMER = 1, 2, 3, 5
SECRET = "not-for-jobs"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-tenant={SECRET}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield made


@pytest.fixture(scope="module")
def traced(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory, maker: object
) -> Iterator[LiveFarm]:
    home = tmp_path_factory.mktemp("traced") / "a home"
    with (
        fresh_settings(home, log_format="json", aotinductor=False) as settings,
        up.embedded(settings) as running,
    ):
        yield LiveFarm(running.addresses, settings)


def submit(farm: LiveFarm, source: Path, name: str, **more: str) -> str:
    options = [word for option, value in more.items() for word in (f"--{option}", value)]
    made = farm.cli(
        "submit", source, "--name", name, "--gpu", "cpu", "--precision", "fp32",
        *options, "--json",
    ).json()  # fmt: skip
    return str(made["id"])


def trace_of(collector: Collector, build: str) -> list[Seen]:
    """The trace of a build, once that has ended and all of it has arrived."""

    def ended() -> Seen | None:
        return next(
            (
                one
                for one in collector.spans
                if one.name == "build" and one.attributes["farm.build.id"] == build
            ),
            None,
        )

    root = wait_until(f"the span of build {build}", ended)

    def whole() -> list[Seen]:
        spans = collector.trace(root.trace)
        ids = {one.id for one in spans} | {""}
        return spans if all(one.parent in ids for one in spans) else []

    return wait_until("the whole trace", whole)


def only(spans: list[Seen], name: str) -> Seen:
    [found] = [one for one in spans if one.name == name]
    return found


def records(farm: LiveFarm, part: str) -> list[dict[str, object]]:
    lines = (farm.home / "logs" / f"{part}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_trace_goes_from_the_command_to_the_stages_of_its_jobs(traced, collector, files):
    build = submit(traced, files / "small.onnx", "traced")
    view = traced.ended(build)
    assert view["state"] == "succeeded"
    spans = trace_of(collector, build)

    command = only(spans, "farm submit")
    request = only(spans, "POST /v1/builds")
    whole = only(spans, "build")
    assert (command.service, command.kind, command.parent) == ("engine-farm-cli", CLIENT, "")
    assert (request.service, request.kind, request.parent) == (
        *("engine-farm-api", SERVER),
        command.id,
    )
    assert request.attributes["http.route"] == "/v1/builds"
    assert request.attributes["http.response.status_code"] == 202
    assert (whole.parent, whole.error) == (request.id, False)
    assert {name: value for name, value in whole.attributes.items() if name != "farm.build.id"} == {
        "farm.build.state": "succeeded",
        "farm.model": "traced",
        "farm.version": 1,
        "farm.jobs.ran": len(view["jobs"]),
    }

    attempts = [one for one in spans if one.kind == CONSUMER]
    assert len(attempts) == len(view["jobs"]) >= 3
    for job in view["jobs"]:
        [attempt] = [one for one in attempts if one.attributes["farm.job.id"] == job["id"]]
        assert attempt.name == f"job {job['kind']}"
        assert attempt.parent == whole.id
        assert (attempt.service, attempt.instance) == ("engine-farm-worker", job["worker"])
        assert attempt.attributes["farm.job.key"] == job["key"]
        assert attempt.attributes["farm.job.reuse"] == job["reuse"] == "ran"
        assert attempt.attributes["farm.job.attempt"] == 1
        [stage] = [one for one in spans if one.parent == attempt.id]
        assert stage.name == f"stage {job['kind']}"
        assert whole.began <= attempt.began <= stage.began <= stage.ended <= attempt.ended
        phases = [one for one in spans if one.parent == stage.id]
        assert phases[0].name == "phase verify inputs"
        assert all(stage.began <= one.began <= one.ended <= stage.ended for one in phases)
    [built] = [one for one in attempts if one.attributes["farm.stage"] == "build"]
    assert built.attributes["farm.gpu"] == "cpu"
    assert built.attributes["farm.runtime"] == "onnxruntime"
    assert built.attributes["farm.precision"] == "fp32"


def test_log_records_name_the_build_the_job_and_the_trace(traced, collector, files):
    build = submit(traced, files / "small.onnx", "logged", priority="9")
    view = traced.ended(build)
    spans = trace_of(collector, build)
    [submitted] = [one for one in records(traced, "api") if one.get("build") == build]
    assert submitted["trace_id"] == spans[0].trace
    assert submitted["request_id"] == only(spans, "POST /v1/builds").attributes["farm.request.id"]
    # Another model of the same source: all its jobs are there.
    assert {job["reuse"] for job in view["jobs"]} == {"cached"}
    assert only(spans, "build").attributes["farm.jobs.cached"] == len(view["jobs"])

    first = traced.build("last")
    jobs = {job["id"]: job for job in first["jobs"]}
    ran = [one for one in records(traced, "workers") if one.get("job") in jobs]
    for job in jobs.values():
        [begins, *_, ends] = [one for one in ran if one["job"] == job["id"]]
        for record in (begins, ends):
            assert record["stage"] == job["kind"]
            assert record["attempt"] == 1
            assert record["worker"] == job["worker"]
            assert "trace_id" not in record or len(str(record["trace_id"])) == 32


def test_a_failed_job_is_an_error_in_its_trace_without_its_long_text(traced, collector, files):
    build = submit(traced, files / "custom.onnx", "refused")
    assert traced.ended(build)["state"] == "failed"
    spans = trace_of(collector, build)
    whole = only(spans, "build")
    failed = [one for one in spans if one.kind == CONSUMER and one.error]
    assert whole.error
    assert failed
    code = traced.build(build)["error"]["code"]
    assert failed[0].attributes["error.type"] == whole.attributes["error.type"] == code
    [stage] = [one for one in spans if one.parent == failed[0].id]
    assert stage.error
    texts = [str(value) for one in spans for value in one.attributes.values()]
    assert max(map(len, texts)) <= 200
    assert not any(SECRET in text or traced.key in text for text in texts)


def test_exports_carry_the_operators_headers_and_jobs_see_none_of_it(traced, collector):
    assert collector.headers
    assert all(headers["x-tenant"] == SECRET for headers in collector.headers)
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"forkserver" in command and str(traced.home).encode() in environment:
            assert SECRET.encode() not in environment


def test_an_unsampled_submission_leaves_no_span_anywhere(traced, collector, files):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = traced.http.post(
        "/v1/builds",
        json={
            "model": "unsampled",
            "source": {"digest": traced.upload(files / "retained.onnx"), "format": "onnx"},
            "precisions": ["fp32"],
            "targets": ["cpu"],
        },
        headers={"traceparent": f"00-{trace}-{parent}-00"},
    )
    build = answer.json()["id"]
    assert traced.ended(build)["state"] == "succeeded"
    # What a later, sampled build exports has arrived: so would have what was before it.
    trace_of(collector, submit(traced, files / "small.onnx", "sampled"))
    assert collector.trace(trace) == []


def test_a_job_that_two_builds_wait_for_is_linked_to_both(traced, collector, files):
    data = traced.long_calibration(7, samples=2000)
    one = traced.submit(
        "shared", files / "small.onnx", precisions=["int8"], targets=["cpu"], calibration=data
    )
    traced.running(one["id"], "calibrate")
    two = traced.submit(
        "shared-too", files / "small.onnx", precisions=["int8"], targets=["cpu"], calibration=data
    )
    assert {traced.ended(build["id"])["state"] for build in (one, two)} == {"succeeded"}
    first, second = (trace_of(collector, build["id"]) for build in (one, two))
    other = only(second, "build")
    later = [span for span in first if (other.trace, other.id) in span.links]
    assert {"job build", "job measure"} <= {span.name for span in later}
    assert not [span for span in second if span.kind == CONSUMER]
