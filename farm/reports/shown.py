"""Figures as people read them, on a terminal and on the page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import humanize

from farm.reports.accuracy import Accuracy
from farm.specs import durations

NONE = "–"


def size(count: int) -> str:
    """``1.4 MB``."""
    return humanize.naturalsize(count).replace(" Bytes", " B").replace(" Byte", " B")


def duration(seconds: float) -> str:
    """How long something took: ``4.2 s``, ``1 min 05 s``, ``2 h 03 min``."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    return durations.by_two_units(seconds)


def share(value: float | None, digits: int = 1) -> str:
    """``99.8 %``."""
    return NONE if value is None else f"{value * 100:.{digits}f} %"


def milliseconds(value: float) -> str:
    """Three significant digits, all of them from a second on: ``0.0663 ms``, ``174 ms``, ``1490 ms``."""
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def elapsed(start: datetime | None, end: datetime | None) -> str:
    """How long something took, or has taken so far."""
    if start is None:
        return NONE
    return duration(((end or datetime.now(UTC)) - start).total_seconds())


def ago(moment: datetime) -> str:
    """``3 minutes ago``; ``now`` if the other clock is ahead."""
    passed = max(datetime.now(UTC) - moment, timedelta())
    return humanize.naturaltime(passed)


def judged_on(accuracy: Accuracy) -> str:
    """``450 evaluation``, ``16 held out``, ``16 random``: how many samples of which data."""
    data = (accuracy.data or "?").replace("-", " ")
    return NONE if accuracy.samples is None else f"{accuracy.samples} {data}"


#: Where an engine's compute types come from.
SOURCES = {
    "graph": "typed graph",
    "inspector": "inspector",
    "engine": "inspector",  # an earlier farm's name for it
    "plan": "plan",
    "optimised-graph": "optimised graph",
}
