"""Spans of what the farm does. Without an OTLP endpoint they cost a comparison, and import nothing.

A build outlives the request that asked for it, and the process that took that. Its span is *reserved* then:
its context is kept with the build, where jobs find their parent, and whoever ends the build records it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from farm import logs
from farm.tracing.span import Attributes, Carrier, Kind, Span

if TYPE_CHECKING:
    from farm.tracing.otlp import Tracer

log = logging.getLogger(__name__)

HEADERS = ("traceparent", "tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_STATE_CHARS = 512
_NOTHING: Attributes = {}

_tracer: Tracer | None = None


_NO_SPAN = Span()


def configure(service: str, *, instance: str | None = None) -> None:
    """Export this process's spans if OpenTelemetry's standard variables name an endpoint.

    Parameters:
        service: ``service.name``, unless ``OTEL_SERVICE_NAME`` says another.
        instance: ``service.instance.id``, such as a worker's name.
    """
    global _tracer
    if _tracer is not None or not _is_wanted():
        return
    try:
        from farm.tracing.otlp import Tracer
    except ModuleNotFoundError as err:
        log.warning(
            "an OTLP endpoint is configured, but %s isn't installed: pip install 'engine-farm[otel]'",
            err.name,
        )
        return
    _tracer = Tracer.of_environment(service, instance)


def _is_wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return False
    return any(os.environ.get(name, "").strip() for name in _ENDPOINTS)


def use(tracer: Tracer | None) -> None:
    """Make spans with this tracer; None makes none."""
    global _tracer
    _tracer = tracer


def shut_down() -> None:
    """Send what hasn't been sent, within a few seconds."""
    global _tracer
    if _tracer is not None:
        _tracer.shut_down()
        _tracer = None


@contextmanager
def sent_at_the_end() -> Iterator[None]:
    """Whatever ends the block, its spans are sent."""
    try:
        yield
    finally:
        shut_down()


def is_on() -> bool:
    return _tracer is not None


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: Carrier | None = None,
    links: Iterable[Carrier] = (),
    attributes: Attributes = _NOTHING,
) -> Iterator[Span]:
    """A span for the block, which becomes the current one; an error that leaves the block is its error.

    Parameters:
        parent: by default the current span.
        links: contexts of others that wait for the same.
    """
    if _tracer is None:
        yield _NO_SPAN
        return
    with (
        _tracer.current(name, kind, parent, links, attributes) as made,
        logs.handling(trace_id=made.trace_id, span_id=made.span_id),
    ):
        yield made


def begin(name: str, *, attributes: Attributes = _NOTHING) -> Span:
    """A span below the current one, until its ``end()``."""
    return _NO_SPAN if _tracer is None else _tracer.begin(name, attributes)


def carrier() -> dict[str, str] | None:
    """The current span's context, to go on elsewhere; None without one."""
    return None if _tracer is None else _tracer.carrier()


def reserved() -> dict[str, str] | None:
    """The context of a span below the current one, for :func:`record`, and its ``parent``."""
    return None if _tracer is None else _tracer.reserved()


def of_reserved(reserved: Carrier | None) -> dict[str, str] | None:
    """A reserved span's context, to go on elsewhere."""
    return None if reserved is None else {n: reserved[n] for n in HEADERS if n in reserved}


def record(
    reserved: Carrier,
    name: str,
    *,
    began: datetime,
    ended: datetime,
    attributes: Attributes = _NOTHING,
    error: tuple[str, str] | None = None,
) -> None:
    """Export a reserved span.

    Parameters:
        error: a code and a detail.
    """
    if _tracer is not None:
        _tracer.record(reserved, name, began, ended, attributes, error)


def incoming(headers: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """The context that a request's headers name."""
    parent = headers.get("traceparent", ())
    if len(parent) != 1 or not _PARENT.fullmatch(parent[0]):
        return None
    state = ",".join(headers.get("tracestate", ()))
    if not 0 < len(state) <= _STATE_CHARS:
        return {"traceparent": parent[0]}
    return {"traceparent": parent[0], "tracestate": state}


def outgoing() -> dict[str, str]:
    """The headers of a request: the current span's, the calling program's, or of its environment."""
    if _tracer is not None:
        return _tracer.carrier() or {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        found: dict[str, str] = {}
        propagate.inject(found)
        if "traceparent" in found:
            return {name: found[name] for name in HEADERS if name in found}
    return of_environment() or {}


def of_environment() -> dict[str, str] | None:
    """The context in which this program was started, as CI systems pass it on."""
    said = {name: [os.environ[name.upper()]] for name in HEADERS if name.upper() in os.environ}
    return incoming(said)
