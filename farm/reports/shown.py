"""Figures as people read them, on a terminal and on the page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import humanize

from farm.specs import durations
from farm.specs.tasks import IN_UNITS

if TYPE_CHECKING:
    from farm.reports.accuracy import Accuracy, Task
    from farm.reports.layers import ComputeView

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


def worth(accuracy: Accuracy) -> str:
    """An engine's accuracy in a word: of its task, else its agreement, else its outputs' cosine."""
    if accuracy.task:
        return task(accuracy.task)
    agreed = agreement(accuracy)
    if agreed != NONE or accuracy.cosine_mean is None:
        return agreed
    return f"cosine {cosine(accuracy)}"


def agrees(accuracy: Accuracy) -> str:
    """``agreement 99.8 % (99.1–100.0)``, or else ``cosine 0.9999 (0.9998–1.0000)``, if either is known."""
    agreed = agreement(accuracy)
    if agreed != NONE:
        return f"agreement {agreed}"
    if accuracy.cosine_mean is None:
        return ""
    ends = [end for end in accuracy.cosine_interval or () if end is not None]
    between = " ({:.4f}–{:.4f})".format(*ends) if len(ends) == 2 else ""
    return f"cosine {cosine(accuracy)}{between}"


def cosine(accuracy: Accuracy) -> str:
    return NONE if accuracy.cosine_mean is None else f"{accuracy.cosine_mean:.4f}"


def agreement(accuracy: Accuracy) -> str:
    """``90.6 % (75.8–96.8)``: of classes, else of integers, else of items found; and its 95 % interval."""
    for value, interval in (
        (accuracy.top1_agreement, accuracy.top1_interval),
        (accuracy.equal, accuracy.equal_interval),
        (accuracy.matched, accuracy.matched_interval),
    ):
        if value is not None:
            ends = [100 * end for end in interval or () if end is not None]
            between = " ({:.1f}–{:.1f})".format(*ends) if len(ends) == 2 else ""
            return f"{share(value)}{between}"
    return NONE


def task(found: Task | None) -> str:
    """``98.2 % (source 98.4 %)``; in units of its own ``mae 0.213 (source 0.208)``."""
    if not found:
        return NONE
    told = f"{_figure(found, found.engine)} (source {_figure(found, found.source)})"
    return told if found.metric in (None, "top1") else f"{found.metric} {told}"


def drop_interval(found: Task | None) -> str:
    """``-0.2 to 1.3 points``: the 95 % interval of the engine's drop; empty if it is unknown."""
    ends = [end for end in (found.drop_interval if found else None) or () if end is not None]
    if not found or len(ends) != 2:
        return ""
    if found.metric in IN_UNITS:
        return "{:.3g} to {:.3g}".format(*ends)
    return "{:.1f} to {:.1f} points".format(*(100 * end + 0.0 for end in ends))


def _figure(found: Task, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.3g}" if found.metric in IN_UNITS else share(value)


def compute_types(compute: ComputeView | None) -> str:
    """``int8 97 %, fp16 3 % (plan)``: what an engine multiplies in, and who says so."""
    if compute is None or not compute.types:
        return NONE
    types = sorted(compute.types.items(), key=lambda item: -(item[1].share or 0))
    shares = ", ".join(f"{name} {share(of.share, 0)}" for name, of in types)
    return f"{shares} ({SOURCES[compute.source]})"
