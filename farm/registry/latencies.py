"""Decides whether two engines' latencies are comparable, and if not, why.

A ratio of measurements from different kinds of machine, at different batch sizes, on a busy machine, or of
the host instead of the GPU says nothing about the engines.
"""

from __future__ import annotations

from typing import Any

from farm.reports.metrics import MAX_CLOCK_DIFFERENCE, MAX_OTHERS_SHARE, Metrics

#: Settings that may differ: the precision, and the version of PyTorch it was compared with. Two cards of one
#: product and driver may be compared, since a build's engines are measured on whichever worker is free;
#: what makes such cards differ, their clocks, is compared instead (``_clocks_differ``).
_FREE = {"precision", "torch", "uuid"}


def p50_ms(metrics: Metrics | None) -> float | None:
    """The median latency of the engine at its best; None if it wasn't measured.

    On a GPU that is with a CUDA graph if that was measured and is faster.
    """
    return metrics.at_its_best.p50_ms if metrics else None


def doubt(metrics: Metrics | None) -> str | None:
    """Why the engine's latency at its best doesn't represent it, in words; None if it does."""
    if metrics is None or p50_ms(metrics) is None:
        return "it wasn't measured"
    figure = metrics.at_its_best
    if figure is metrics and metrics.speed_up_reason and not _is_of_gpu(metrics):
        return metrics.speed_up_reason  # on a CPU, that is the machine's doing
    share = metrics.others_cpu_share
    if share is not None and share > MAX_OTHERS_SHARE:
        return f"other processes used {share:.0%} of the CPU during timing"
    gpu = figure.gpu or metrics.gpu
    if gpu and gpu.other_processes:
        return f"{gpu.other_processes} other processes were on the GPU during timing"
    warnings = figure.warnings
    if "warnings" not in figure.model_fields_set:
        warnings = metrics.warnings  # earlier releases kept them for all figures together
    if warnings:
        return "; ".join(warnings)
    return "it is host-bound: the GPU waited for the host" if figure.is_host_bound else None


def conditions(metrics: Metrics) -> dict[str, Any]:
    """The conditions that must be equal for two latencies to be comparable."""
    settings = metrics.settings.model_dump(mode="json") if metrics.settings else {}
    same = {name: value for name, value in settings.items() if name not in _FREE}
    if _is_of_gpu(metrics):
        same["driver"] = metrics.gpu.driver if metrics.gpu else None
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
    return _clocks_differ(metrics, other) if _uuid(metrics) != _uuid(other) else None


def ratio(metrics: Metrics | None, other: Metrics | None) -> tuple[float | None, str | None]:
    """The ratio of the median latencies, or None and the reason."""
    reason = not_comparable(metrics, other)
    if reason:
        return None, reason
    value, against = p50_ms(metrics), p50_ms(other)
    assert value is not None
    assert against is not None
    return round(value / against, 4), None


def _is_of_gpu(metrics: Metrics) -> bool:
    return metrics.gpu is not None or _uuid(metrics) is not None


def _uuid(metrics: Metrics) -> str | None:
    return metrics.settings.uuid if metrics.settings else None


def _clocks_differ(metrics: Metrics, other: Metrics) -> str | None:
    """Why two cards of one product aren't alike: one may be locked, or limited, below the other."""
    clocks = [one.at_its_best.sm_mhz or one.sm_mhz for one in (metrics, other)]
    left, right = clocks
    if left is None or right is None:
        return "they were measured on two cards, and the clocks of one are unknown"
    if abs(left - right) > MAX_CLOCK_DIFFERENCE * max(left, right):
        return f"they were measured on two cards, at SM clocks of {left:g} and {right:g} MHz"
    return None
