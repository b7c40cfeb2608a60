"""How long the farm keeps what was, beside the engines that came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KeptHistory:
    """Ages in days after which each goes; None for never."""

    builds_days: float | None = None
    events_days: float | None = None
    logs_days: float | None = None
    samples_days: float | None = None
