"""An engine's figures by batch size."""

from __future__ import annotations

from farm.reports.curves import Point, charts, curves
from farm.reports.metrics import Metrics


def metrics(**more) -> Metrics:
    return Metrics.model_validate({"batch": 8, "latency_ms": {"p50": 2.0, "p99": 4.0}} | more)


def test_the_opt_batch_takes_its_latency_from_the_headline_and_the_rest_from_the_list() -> None:
    throughput = [
        {"batch": 32, "samples_per_s": 90.0, "latency_p50_ms": 6.0},
        {"batch": 8, "samples_per_s": 40.0, "latency_p50_ms": 2.1},
        {"batch": 64, "samples_per_s": None, "reason": "out of memory"},
    ]
    [engine] = curves(metrics(throughput=throughput))
    assert engine.points == [
        Point(batch=8, p50_ms=2.0, p99_ms=4.0, samples_per_s=40.0),
        Point(batch=32, p50_ms=6.0, samples_per_s=90.0),
    ]


def test_cuda_graphs_and_peers_have_curves_of_their_own_or_a_reason() -> None:
    found = curves(
        metrics(
            cuda_graph={"latency_ms": {"p50": 1.0}},
            eager={"latency_ms": {"p50": 9.0}},
            compiled={"reason": "it has no compiler"},
        )
    )
    assert [(one.name, one.reason) for one in found] == [
        ("engine", None),
        ("engine, CUDA graph", None),
        ("PyTorch, eager", None),
        ("PyTorch, compiled", "it has no compiler"),
    ]
    [latency] = charts(found)
    assert (latency.unit, latency.batches) == ("ms", [8])
    assert latency.series == {
        "engine": [2.0],
        "engine, CUDA graph": [1.0],
        "PyTorch, eager": [9.0],
        "engine, p99": [4.0],
    }
    assert list(latency.series)[-1] == "engine, p99"


def test_nothing_measured_makes_no_chart() -> None:
    found = curves(Metrics(reason="no GPU"))
    assert [(one.points, one.reason) for one in found] == [([], "no GPU")]
    assert charts(found) == []
