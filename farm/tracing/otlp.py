"""OpenTelemetry's SDK, exporting by OTLP over HTTP. Imported by ``spans`` alone, where it is configured."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from farm import __version__
from farm.errors import FarmError
from farm.specs import texts
from farm.tracing import span as shapes

log = logging.getLogger(__name__)

_NAME_CHARS, _TEXT_CHARS = 120, 200
_FLUSH_S = 3.0
_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_PROPAGATOR = TraceContextTextMapPropagator()
#: The id of the next span made in this context, where it was reserved.
_reserved_id: ContextVar[int | None] = ContextVar("reserved_id", default=None)


class _Ids(RandomIdGenerator):
    def generate_span_id(self) -> int:
        return _reserved_id.get() or super().generate_span_id()


class Span(shapes.Span):
    """A span of a trace."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.span_id = trace.format_span_id(context.span_id)

    def rename(self, name: str) -> None:
        self._span.update_name(_text(name, _NAME_CHARS))

    def set(self, attributes: shapes.Attributes) -> None:
        self._span.set_attributes(_clean(attributes))

    def fail(self, code: str, detail: str) -> None:
        self._span.set_attribute("error.type", _text(code))
        self._span.set_status(Status(StatusCode.ERROR, _text(detail)))

    def end(self) -> None:
        self._span.end()


class Tracer:
    """Makes the spans of a process.

    Parameters:
        processor: takes the spans that have ended.
    """

    def __init__(self, resource: Resource, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(
            resource=resource,
            id_generator=_Ids(),
            span_limits=SpanLimits(max_span_attribute_length=2 * _TEXT_CHARS),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("farm", __version__)

    @classmethod
    def of_environment(cls, service: str, instance: str | None) -> Tracer:
        """A tracer that exports as OpenTelemetry's standard variables say."""
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = {"service.namespace": "engine-farm", "service.version": __version__}
        resource |= {} if named else {"service.name": service}
        resource |= {"service.instance.id": instance} if instance else {}
        return cls(Resource.create(resource), BatchSpanProcessor(OTLPSpanExporter()))

    def shut_down(self) -> None:
        # Its own limits on time are longer, or not kept to, if the collector doesn't answer.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_FLUSH_S)

    @contextmanager
    def current(
        self,
        name: str,
        kind: shapes.Kind,
        parent: shapes.Carrier | None,
        links: Iterable[shapes.Carrier],
        attributes: shapes.Attributes,
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            _text(name, _NAME_CHARS),
            context=None if parent is None else _context(parent),
            kind=_KINDS[kind],
            attributes=_clean(attributes),
            links=[Link(one) for one in map(_of, links) if one.is_valid],
            record_exception=False,  # its text may be long, and say what isn't meant for everybody
            set_status_on_exception=False,
        ) as made:
            span = Span(made)
            try:
                yield span
            except FarmError as err:
                span.fail(err.code, err.detail)
                raise
            except BaseException as err:
                span.fail(type(err).__name__, "")
                raise

    def begin(self, name: str, attributes: shapes.Attributes) -> Span:
        return Span(
            self._tracer.start_span(_text(name, _NAME_CHARS), attributes=_clean(attributes))
        )

    def carrier(self) -> dict[str, str] | None:
        found: dict[str, str] = {}
        _PROPAGATOR.inject(found)
        return found or None

    def reserved(self) -> dict[str, str] | None:
        current = self.carrier()
        if current is None:
            return None
        version, trace_id, parent, flags = current["traceparent"].split("-")
        own = trace.format_span_id(RandomIdGenerator().generate_span_id())
        return current | {
            "traceparent": "-".join((version, trace_id, own, flags)),
            "parent": parent,
        }

    def record(
        self,
        reserved: shapes.Carrier,
        name: str,
        began: datetime,
        ended: datetime,
        attributes: shapes.Attributes,
        error: tuple[str, str] | None,
    ) -> None:
        version, trace_id, own, flags = reserved["traceparent"].split("-")
        parent = {"traceparent": "-".join((version, trace_id, reserved["parent"], flags))}
        if "tracestate" in reserved:
            parent["tracestate"] = reserved["tracestate"]
        token = _reserved_id.set(int(own, 16))
        try:
            made = self._tracer.start_span(
                _text(name, _NAME_CHARS),
                context=_context(parent),
                start_time=_ns(began),
                attributes=_clean(attributes),
            )
        finally:
            _reserved_id.reset(token)
        if error is not None:
            Span(made).fail(*error)
        made.end(_ns(ended))


def _context(carrier: shapes.Carrier) -> Context:
    return _PROPAGATOR.extract(carrier, context=Context())


def _of(carrier: shapes.Carrier) -> trace.SpanContext:
    return trace.get_current_span(_context(carrier)).get_span_context()


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def _text(text: str, most: int = _TEXT_CHARS) -> str:
    escaped: str = texts.escaped(text)
    return escaped if len(escaped) <= most else f"{escaped[: most - 1]}…"


def _clean(attributes: shapes.Attributes) -> Mapping[str, str | int | float | bool]:
    return {
        name: _text(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }
