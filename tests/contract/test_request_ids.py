"""A request's id and its trace, from its headers to the log and the answer, however many come at once."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from farm.database.tables import Build, Job
from farm.tracing import spans
from farm.tracing.otlp import Tracer
from tests.again import until_served
from tests.contract.conftest import REQUEST, Api, request
from tests.contract.live_api import live_api
from tests.contract.test_api import problem

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE}-{PARENT}-01"


def test_an_answer_carries_the_id_that_its_request_has(api):
    for path in ("/v1/models", "/v1/nothing", "/healthz", "/v2/"):
        answer = api.get(path, headers={"X-Request-Id": "ci-7.retry:1"})
        assert answer.headers["x-request-id"] == "ci-7.retry:1"


@pytest.mark.parametrize(
    "given",
    ["", "a b", "a\x1b[2J", 'x"y', "x" * 129, "-x", "ä", "a,b"],
    ids=lambda given: repr(given)[:20],
)
def test_an_id_that_could_harm_a_log_is_replaced(api, given):
    answer = api.get("/healthz", headers={"X-Request-Id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 16
    assert answer.headers["x-request-id"].isalnum()


def test_requests_without_an_id_get_ids_of_their_own(api):
    ids = {api.get("/healthz").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def test_a_request_that_the_door_refuses_has_an_id_too(api):
    answer = Api(api.app, "wrong").get("/v1/models", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 401
    assert answer.headers["x-request-id"] == "mine"


def test_a_bug_names_the_request_by_which_its_traceback_is_found(api, caplog):
    api.get("/healthz")  # after which a route needs no scope

    @api.app.get("/v1/bug")
    def bug() -> None:
        raise ZeroDivisionError("oh")

    with caplog.at_level(logging.ERROR):
        answer = api.get("/v1/bug", headers={"X-Request-Id": "r-17"})
    assert "under request r-17" in problem(answer, 500)["detail"]


def test_requests_at_once_do_not_mix_their_ids(tmp_path):
    with live_api(tmp_path / "home", {"FARM_LOG_FORMAT": "json"}) as live:
        digest = live.upload(b"a model")

        def submit(number: int) -> tuple[str, str]:
            body = REQUEST | {
                "source": {"digest": digest, "format": "onnx"},
                "model": f"digits-{number}",
            }
            sent = {"X-Request-Id": f"request-{number}"}
            answer = until_served(lambda: live.http.post("/v1/builds", json=body, headers=sent))
            assert answer.status_code == 202, answer.text
            return answer.headers["x-request-id"], answer.json()["id"]

        with ThreadPoolExecutor(12) as pool:
            made = list(pool.map(submit, range(24)))
        records = [json.loads(line) for line in (tmp_path / "home/api.log").open()]
    assert [name for name, _ in made] == [f"request-{number}" for number in range(24)]
    said = {(one["request_id"], one["build"]) for one in records if "build" in one}
    assert said == set(made)


@pytest.fixture
def exported():
    exporter = InMemorySpanExporter()
    spans.use(Tracer(Resource({}), SimpleSpanProcessor(exporter)))
    yield exporter
    spans.use(None)


def test_a_request_is_a_span_named_by_its_route_and_health_checks_are_none(api, exported):
    api.get("/healthz")
    api.get("/metrics")
    api.get("/v1/models/secret-name/engines/sm_89", headers={"traceparent": CONTEXT})
    api.get("/nowhere")
    Api(api.app, "wrong").get("/v1/models")
    api.request("BREW", "/v1/models")
    found, nowhere, refused, brewed = exported.get_finished_spans()
    assert found.name == "GET /v1/models/{model}/engines/{gpu}"
    assert (f"{found.context.trace_id:032x}", f"{found.parent.span_id:016x}") == (TRACE, PARENT)
    assert found.attributes["http.response.status_code"] == 404
    assert "secret-name" not in str(dict(found.attributes))
    assert [one.name for one in (nowhere, refused, brewed)] == ["GET", "GET", "HTTP /v1/models"]
    assert refused.attributes["http.response.status_code"] == 401


def test_a_build_and_its_jobs_keep_the_context_of_their_submission(api, db, exported):
    sent = {"traceparent": CONTEXT, "tracestate": "vendor=1"}
    build_id = api.post("/v1/builds", json=request(api), headers=sent).json()["id"]
    with db.read() as session:
        build = session.get_one(Build, build_id)
        jobs = session.query(Job).all()
    made = next(one for one in exported.get_finished_spans() if one.name == "POST /v1/builds")
    assert build.trace["parent"] == f"{made.context.span_id:016x}"
    assert build.trace["traceparent"].split("-")[1] == TRACE
    assert build.trace["tracestate"] == "vendor=1"
    assert jobs
    kept = {name: build.trace[name] for name in ("traceparent", "tracestate")}
    assert all(job.trace == kept for job in jobs)


def test_a_cancelled_and_retried_build_has_a_span_for_each_of_its_lives(api, exported):
    build_id = api.post("/v1/builds", json=request(api)).json()["id"]
    api.post(f"/v1/builds/{build_id}/cancel")
    retried = api.post(f"/v1/builds/{build_id}/retry", headers={"traceparent": CONTEXT})
    assert retried.status_code == 200, retried.text
    api.post(f"/v1/builds/{build_id}/cancel")
    ended = exported.get_finished_spans()
    first, second = (one for one in ended if one.name == "build")
    [retry] = [one for one in ended if one.name.endswith("/retry")]
    assert first.context.span_id != second.context.span_id
    assert first.attributes["farm.build.state"] == "cancelled"
    assert second.parent.span_id == retry.context.span_id
    assert f"{second.context.trace_id:032x}" == TRACE


def test_without_a_tracer_nothing_is_kept_of_a_trace(api, db):
    build_id = api.post("/v1/builds", json=request(api), headers={"traceparent": CONTEXT}).json()
    with db.read() as session:
        assert session.get_one(Build, build_id["id"]).trace is None
