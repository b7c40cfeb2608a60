"""Whether two engines' latencies can be held against each other, and why not.

A ratio of what was measured on different machines, at different batch sizes, or while others used the
machine says nothing of the engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: While others hold more than this share of all cores, a ratio of latencies means little.
MAX_OTHERS_SHARE = 0.2

#: Of the settings, what doesn't have to be the same: what it was built in, and what PyTorch it was beside.
_FREE = {"precision", "torch"}

Metrics = Mapping[str, Any] | None


def p50_ms(metrics: Metrics) -> float | None:
    """The median latency; None where nobody measured it."""
    latency = (metrics or {}).get("latency_ms")
    found = latency.get("p50") if isinstance(latency, Mapping) else None
    return found or None


def doubt(metrics: Metrics) -> str | None:
    """Why a latency is no measure of its engine, in the farm's own words; None when it is one."""
    if metrics is None or p50_ms(metrics) is None:
        return "it wasn't measured"
    share = metrics.get("others_cpu_share")
    if metrics.get("speed_up_reason"):
        return str(metrics["speed_up_reason"])
    if share is not None and share > MAX_OTHERS_SHARE:
        return f"other processes used {share:.0%} of the CPU during timing"
    warnings = metrics.get("warnings")
    return "; ".join(map(str, warnings)) if warnings else None


def conditions(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for two latencies to be compared."""
    settings = metrics.get("settings") or {}
    same = {name: value for name, value in settings.items() if name not in _FREE}
    return {"batch": metrics.get("batch")} | same


def not_comparable(metrics: Metrics, other: Metrics) -> str | None:
    """Why a ratio of two median latencies would say nothing; None when it says something."""
    for one in (metrics, other):
        reason = doubt(one)
        if reason:
            return reason if one is metrics else f"the other engine: {reason}"
    assert metrics is not None
    assert other is not None
    left, right = conditions(metrics), conditions(other)
    differ = sorted(
        name for name in left.keys() | right.keys() if left.get(name) != right.get(name)
    )
    if differ:
        return f"they were measured with different {', '.join(differ)}"
    return None


def ratio(metrics: Metrics, other: Metrics) -> tuple[float | None, str | None]:
    """The ratio of the median latencies, or None and why there is none."""
    reason = not_comparable(metrics, other)
    if reason:
        return None, reason
    value, against = p50_ms(metrics), p50_ms(other)
    assert value is not None
    assert against is not None
    return round(value / against, 4), None
