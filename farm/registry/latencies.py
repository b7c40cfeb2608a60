"""Decides whether two engines' latencies are comparable, and if not, why.

A ratio of measurements from different machines, at different batch sizes, or on a busy machine says nothing
about the engines.
"""

from __future__ import annotations

from typing import Any

from farm.reports.metrics import MAX_OTHERS_SHARE, Metrics

#: Settings that may differ: the precision, and the version of PyTorch it was compared with.
_FREE = {"precision", "torch"}


def p50_ms(metrics: Metrics | None) -> float | None:
    """The median latency; None if it wasn't measured."""
    return ((metrics and metrics.latency_ms) or {}).get("p50") or None


def doubt(metrics: Metrics | None) -> str | None:
    """Why a latency doesn't represent its engine, in words; None if it does."""
    if metrics is None or p50_ms(metrics) is None:
        return "it wasn't measured"
    share = metrics.others_cpu_share
    if metrics.speed_up_reason:
        return metrics.speed_up_reason
    if share is not None and share > MAX_OTHERS_SHARE:
        return f"other processes used {share:.0%} of the CPU during timing"
    return "; ".join(metrics.warnings) or None


def conditions(metrics: Metrics) -> dict[str, Any]:
    """The conditions that must be equal for two latencies to be comparable."""
    settings = metrics.settings.model_dump(mode="json") if metrics.settings else {}
    same = {name: value for name, value in settings.items() if name not in _FREE}
    return {"batch": metrics.batch} | same


def not_comparable(metrics: Metrics | None, other: Metrics | None) -> str | None:
    """Why a ratio of two median latencies would be meaningless; None if it isn't."""
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


def ratio(metrics: Metrics | None, other: Metrics | None) -> tuple[float | None, str | None]:
    """The ratio of the median latencies, or None and the reason."""
    reason = not_comparable(metrics, other)
    if reason:
        return None, reason
    value, against = p50_ms(metrics), p50_ms(other)
    assert value is not None
    assert against is not None
    return round(value / against, 4), None
