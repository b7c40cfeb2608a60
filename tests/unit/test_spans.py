"""Spans: none without an endpoint, true parents with one, and nothing hostile or secret in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from farm import logs
from farm.errors import StageFailed
from farm.testing import documents, stub_farm
from farm.tracing import spans
from farm.tracing.otlp import Tracer
from tests.collector import collecting

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    spans.use(Tracer(Resource({}), SimpleSpanProcessor(exporter)))
    yield exporter
    spans.use(None)


def names(exporter: InMemorySpanExporter) -> list[str]:
    return [one.name for one in exporter.get_finished_spans()]


PARTS = """
import sys
import farm.api.app, farm.queue.doorbell, farm.cli, farm.client
from farm.tracing import spans
for service in ("api", "worker"):
    spans.configure(service)
with spans.span("nothing") as span:
    span.set({"a": 1})
    assert spans.carrier() is spans.reserved() is None
    assert spans.outgoing() == {}
# Other libraries import parts of it where it is installed.
print("farm.tracing.otlp" in sys.modules, "opentelemetry.exporter" in sys.modules)
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_without_an_endpoint_no_part_of_the_farm_imports_an_exporter(environment):
    others = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", PARTS], env=others | environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["False", "False"], ran.stderr


MISSING = """
import sys
sys.modules["opentelemetry"] = None
from farm.tracing import spans
spans.configure("api")
assert not spans.is_on()
"""


def test_an_endpoint_without_the_extra_is_a_warning_that_names_it():
    more = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}
    ran = subprocess.run(
        [sys.executable, "-c", MISSING], env=os.environ | more, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "pip install 'engine-farm[otel]'" in ran.stderr


def test_a_span_is_below_the_context_that_a_request_names(exported):
    with spans.span("outer", "server", parent=spans.incoming({"traceparent": [CONTEXT]})) as outer:
        assert logs.handled() == {"trace_id": TRACE, "span_id": outer.span_id}
        with spans.span("inner"):
            assert spans.carrier()["traceparent"].startswith(f"00-{TRACE}-")
    assert logs.handled() == {}
    inner, outer = exported.get_finished_spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert f"{outer.context.trace_id:032x}" == TRACE
    assert f"{outer.parent.span_id:016x}" == PARENT
    assert inner.parent.span_id == outer.context.span_id


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [""],
        ["nonsense"],
        [CONTEXT, CONTEXT],
        [CONTEXT.upper()],
        [f"{CONTEXT}\r\nx: y"],
        ["00-" + "a" * 10_000],
    ],
    ids=lambda sent: str(sent)[:30],
)
def test_a_header_that_is_no_context_begins_a_trace_of_its_own(exported, sent):
    assert spans.incoming({"traceparent": sent}) is None
    with spans.span("request", parent=spans.incoming({"traceparent": sent})):
        pass
    assert exported.get_finished_spans()[0].parent is None


def test_a_long_trace_state_is_dropped_and_a_short_one_kept():
    context = {"traceparent": [CONTEXT]}
    assert spans.incoming(context | {"tracestate": ["a=1", "b=2"]}) == {
        "traceparent": CONTEXT,
        "tracestate": "a=1,b=2",
    }
    assert spans.incoming(context | {"tracestate": ["a=" + "1" * 600]}) == {"traceparent": CONTEXT}


def test_a_reserved_span_is_the_parent_of_what_ended_before_it(exported):
    began = datetime.now(UTC)
    with spans.span("request"):
        reserved = spans.reserved()
    below = spans.of_reserved(reserved)
    assert set(below) == {"traceparent"}
    with spans.span("job", "consumer", parent=below, links=[{"traceparent": CONTEXT}]):
        pass
    ended = began + timedelta(hours=3)
    spans.record(reserved, "build", began=began, ended=ended, attributes={"farm.version": 3})
    request, job, build = exported.get_finished_spans()
    assert build.parent.span_id == request.context.span_id
    assert job.parent.span_id == build.context.span_id
    assert {one.context.trace_id for one in (request, job, build)} == {request.context.trace_id}
    assert build.end_time - build.start_time == 3 * 3600 * 10**9
    assert build.attributes == {"farm.version": 3}
    assert f"{job.links[0].context.span_id:016x}" == PARENT
    # The next span has an id of its own again.
    with spans.span("other"):
        pass
    assert exported.get_finished_spans()[-1].context.span_id != build.context.span_id


def test_an_error_is_its_code_and_a_bounded_printable_detail(exported):
    with pytest.raises(StageFailed), spans.span("job"):
        raise StageFailed("bad\x1b[2J\n" + "x" * 10_000)
    with pytest.raises(ZeroDivisionError), spans.span("bug"):
        1 / 0  # noqa: B018
    failed, bug = exported.get_finished_spans()
    assert failed.status.status_code is bug.status.status_code is StatusCode.ERROR
    assert failed.attributes == {"error.type": "stage-failed"}
    assert bug.attributes == {"error.type": "ZeroDivisionError"}
    assert len(failed.status.description) == 200
    assert failed.status.description.isprintable()
    assert failed.events == bug.events == ()


def test_names_and_attributes_of_hostile_lengths_are_cut(exported):
    with spans.span("n" * 5000, attributes={"phase": "p\n" * 5000, "none": None}) as span:
        span.set({"more": "m" * 5000})
    [made] = exported.get_finished_spans()
    assert len(made.name) == 120
    assert made.attributes.keys() == {"phase", "more"}
    assert all(len(text) == 200 and text.isprintable() for text in made.attributes.values())


def test_what_is_not_sampled_stays_so_below_a_reserved_span(exported):
    parent = spans.incoming({"traceparent": [f"00-{TRACE}-{PARENT}-00"]})
    with spans.span("request", parent=parent):
        reserved = spans.reserved()
    assert reserved["traceparent"].endswith("-00")
    with spans.span("job", parent=spans.of_reserved(reserved)):
        pass
    at = datetime.now(UTC)
    spans.record(reserved, "build", began=at, ended=at)
    assert names(exported) == []


EMBEDDED = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from farm.client import Farm
with TracerProvider().get_tracer("app").start_as_current_span("app") as span:
    Farm(sys.argv[1]).build(sys.argv[2])
    print(f"{span.get_span_context().trace_id:032x}")
"""


def test_the_client_continues_the_trace_of_the_program_it_is_in():
    with stub_farm.running() as stub:
        ran = subprocess.run(
            [sys.executable, "-c", EMBEDDED, stub.url, documents.BUILD],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert stub.seen[-1][2]["traceparent"].split("-")[1] == ran.stdout.strip()


def test_a_command_continues_the_trace_of_its_environment_even_without_an_endpoint():
    others = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with stub_farm.running() as stub:
        ran = subprocess.run(
            [sys.executable, "-m", "farm", "status", documents.BUILD, "--json", "--url", stub.url],
            env=others | {"TRACEPARENT": CONTEXT},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert stub.seen[-1][2]["traceparent"] == CONTEXT


SHORT = """
from farm.tracing import spans
spans.configure("short")
with spans.span("only"):
    pass
spans.shut_down()
"""


def test_a_short_process_has_its_spans_sent_before_it_ends():
    with collecting() as collector:
        more = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
        subprocess.run([sys.executable, "-c", SHORT], env=os.environ | more, check=True)
        assert [(one.service, one.name) for one in collector.spans] == [("mine", "only")]


def test_a_collector_that_is_away_holds_nobody_up_for_long():
    # The exporter itself would go on trying for hours.
    more = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10000",
    }
    subprocess.run([sys.executable, "-c", SHORT], env=os.environ | more, check=True, timeout=120)
