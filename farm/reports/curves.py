"""An engine's figures by batch size, beside PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from farm.reports.metrics import Metrics, Timed


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one model was measured at at one batch size; None where it wasn't.

    High percentiles are known at the profile's opt batch alone.
    """

    batch: int | None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    samples_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model's figures, by batch size; without any, the reason."""

    name: str
    points: Sequence[Point]
    reason: str | None = None


#: PyTorch's, by their fields.
_PEERS = {
    "eager": "PyTorch, eager",
    "eager_typed": "PyTorch, eager, in the engine's precision",
    "eager_cuda_graph": "PyTorch, eager, CUDA graph",
    "eager_autocast": "PyTorch, eager, autocast",
    "compiled": "PyTorch, compiled",
    "compiled_cuda_graph": "PyTorch, compiled, CUDA graph",
}


def curves(metrics: Metrics) -> list[Curve]:
    """The engine's curve, with a CUDA graph too if that was timed, and those of its peers."""
    found = [_curve("engine", metrics, metrics.batch)]
    if metrics.cuda_graph is not None:
        found.append(_curve("engine, CUDA graph", metrics.cuda_graph, metrics.batch))
    for field, name in _PEERS.items():
        timed = getattr(metrics, field)
        if timed is not None:
            found.append(_curve(name, timed, metrics.batch))
    return found


def _curve(name: str, timed: Timed, batch: int | None) -> Curve:
    points = sorted(_points(timed, batch), key=lambda point: point.batch or 0)
    return Curve(name=name, points=points, reason=None if points else timed.reason)


def _points(timed: Timed, batch: int | None) -> Iterator[Point]:
    by_batch = {one.batch: one for one in timed.throughput}
    at_opt = by_batch.get(batch) if batch is not None else None
    latency = timed.latency_ms or {}
    headline = Point(
        batch=batch,
        p50_ms=latency.get("p50") or (at_opt.latency_p50_ms if at_opt else None),
        p90_ms=latency.get("p90"),
        p99_ms=latency.get("p99"),
        samples_per_s=timed.samples_per_s or (at_opt.samples_per_s if at_opt else None),
    )
    if headline.p50_ms is not None or headline.samples_per_s is not None:
        yield headline
    for one in timed.throughput:
        has_figure = one.latency_p50_ms is not None or one.samples_per_s is not None
        if one.batch != batch and has_figure:
            yield Point(batch=one.batch, p50_ms=one.latency_p50_ms, samples_per_s=one.samples_per_s)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series of figures at the same batch sizes; None where there is none."""

    title: str
    unit: str
    batches: Sequence[int]
    series: Mapping[str, Sequence[float | None]]


def charts(found: Sequence[Curve]) -> list[Chart]:
    """Latency and throughput by batch size; none that would be empty."""
    batches = sorted({point.batch for one in found for point in one.points if point.batch})
    latency: dict[str, Sequence[float | None]] = {}
    rate: dict[str, Sequence[float | None]] = {}
    for one in found:
        points = _at(one, batches)
        latency[one.name] = [point.p50_ms for point in points]
        rate[one.name] = [point.samples_per_s for point in points]
    for one in found[
        :1
    ]:  # the peers' would crowd it; last, so that a model's place is the same in each chart
        latency[f"{one.name}, p90"] = [point.p90_ms for point in _at(one, batches)]
        latency[f"{one.name}, p99"] = [point.p99_ms for point in _at(one, batches)]
    both = (("Latency", "ms", latency), ("Throughput", "samples/s", rate))
    return [
        Chart(title=title, unit=unit, batches=batches, series=told)
        for title, unit, series in both
        if (told := {name: values for name, values in series.items() if any(values)})
    ]


def _at(curve: Curve, batches: Sequence[int]) -> list[Point]:
    found = {point.batch: point for point in curve.points}
    return [found.get(batch, Point(batch=batch)) for batch in batches]
