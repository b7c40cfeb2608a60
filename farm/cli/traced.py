"""The spans of commands that give the farm work, where an OTLP endpoint is configured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farm.tracing import spans


@contextmanager
def command(name: str) -> Iterator[None]:
    """The span of a command; the farm's go below it. It continues the trace of its environment."""
    spans.configure("engine-farm-cli")
    if not spans.is_on():
        yield
        return
    parent = spans.of_environment()
    with spans.sent_at_the_end(), spans.span(f"farm {name}", "client", parent=parent):
        yield
