"""An engine's figure under a goal, and whether two figures can be compared."""

from __future__ import annotations

from typing import NamedTuple

from farm.registry import latencies
from farm.reports.metrics import Metrics
from farm.specs.goals import Aim, Goal

NAMES = {Aim.LATENCY: "latencies", Aim.THROUGHPUT: "throughputs"}


class Figure(NamedTuple):
    """A latency in ms or a number of samples per second, and the batch it was measured at."""

    value: float
    batch: int | None


def figure(metrics: Metrics | None, goal: Goal) -> Figure | None:
    """What an engine was measured at under a goal; None if it wasn't."""
    if metrics is None:
        return None
    return (latency if goal.aim is Aim.LATENCY else throughput)(metrics, goal.batch)


def latency(metrics: Metrics, batch: int | None = None) -> Figure | None:
    """The median latency at a batch; by default at the profile's opt."""
    p50_ms = latencies.p50_ms(metrics)
    if batch is None or batch == metrics.batch:
        return None if p50_ms is None else Figure(p50_ms, metrics.batch)
    found = (one.latency_p50_ms for one in metrics.throughput if one.batch == batch)
    return next((Figure(value, batch) for value in found if value), None)


def throughput(metrics: Metrics, batch: int | None = None) -> Figure | None:
    """The most samples per second at a batch; by default at the best one."""
    graph = metrics.cuda_graph
    at_opt = (metrics.samples_per_s, graph.samples_per_s if graph else None)
    measured = [
        *((metrics.batch, value) for value in at_opt),
        *((one.batch, one.samples_per_s) for one in metrics.throughput),
    ]
    found = [Figure(value, at) for at, value in measured if value and batch in (None, at)]
    return max(found, default=None)


def uses_cuda_graph(metrics: Metrics) -> bool | None:
    """Whether the latency at the profile's opt batch is that of a CUDA graph; None if none was timed."""
    p50_ms = latencies.p50_ms(metrics)
    graph = metrics.cuda_graph and (metrics.cuda_graph.latency_ms or {}).get("p50")
    return None if graph is None or p50_ms is None else graph == p50_ms


def doubt(metrics: Metrics | None, goal: Goal) -> str | None:
    """Why an engine has no figure that represents it under a goal, in words; None if it has."""
    told = latencies.doubt(metrics)
    if told or metrics is None:
        return told
    if figure(metrics, goal) is None:
        sizes = sorted(
            {one.batch for one in metrics.throughput if one.batch} | {metrics.batch or 0}
        )
        measured = ", ".join(str(size) for size in sizes if size) or "no other"
        return f"it wasn't measured at batch {goal.batch}, only at {measured}"
    return None


def not_comparable(metrics: Metrics | None, other: Metrics | None, goal: Goal) -> str | None:
    """Why comparing two engines' figures under a goal would be meaningless; None if it isn't."""
    for one in (metrics, other):
        reason = doubt(one, goal)
        if reason:
            return reason if one is metrics else f"the other engine: {reason}"
    if goal == Goal():
        return latencies.not_comparable(metrics, other)
    return latencies.not_comparable(_at(metrics, goal), _at(other, goal))


def _at(metrics: Metrics | None, goal: Goal) -> Metrics | None:
    """The metrics as if their headline were the goal's figure, whose batch is the same for all."""
    return metrics and metrics.model_copy(update={"batch": goal.batch})


def said(found: Figure, goal: Goal) -> str:
    """``p50 1.2 ms``, ``5210 samples/s``."""
    if goal.aim is Aim.LATENCY:
        return f"p50 {found.value:.3g} ms"
    return f"{_rate(found.value)} samples/s"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
