"""A span, as those see it who make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["internal", "client", "server", "consumer"]
#: W3C's headers, by their names: ``traceparent``, and maybe ``tracestate``.
Carrier = Mapping[str, str]
Attributes = Mapping[str, str | int | float | bool | None]


class Span:
    """A span; this one is of no trace."""

    def rename(self, name: str) -> None:
        """Name it by what has become known since it began."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, code: str, detail: str) -> None:
        """Mark it as failed."""

    def end(self) -> None:
        """End it; for one from :func:`begin`."""
