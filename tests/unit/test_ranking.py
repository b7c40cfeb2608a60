"""Which engine wins: by goal and gate, among figures that can be compared."""

from __future__ import annotations

from typing import Any

import pytest

from farm.registry import figures, ranking
from farm.reports.metrics import Metrics
from farm.schemas.engines import EngineView
from farm.specs.goals import Aim, Goal
from farm.testing import documents

H100 = {"device": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1", "torch": "2.13.0"}
THROUGHPUT = Goal(aim=Aim.THROUGHPUT)


def timed(p50_ms: float, rates: dict[int, float] | None = None, **more: Any) -> dict[str, Any]:
    """Metrics at batch 8, with the samples per second at some batches."""
    entries = [
        {"batch": batch, "samples_per_s": rate, "latency_p50_ms": 1000 * batch / rate}
        for batch, rate in (rates or {}).items()
    ]
    base = {"latency_ms": {"p50": p50_ms}, "samples_per_s": 8000 / p50_ms, "batch": 8}
    return base | {"throughput": entries, "settings": H100} | more


def engine(name: str, metrics: dict[str, Any] | None = None, **changes: Any) -> EngineView:
    """``fp16 by aotinductor``."""
    precision, _, runtime = name.partition(" by ")
    gpu = "sm_90" if runtime == "aotinductor" else "h100"
    row = documents.engine(b"x", id=name, precision=precision, runtime=runtime, gpu=gpu)
    return EngineView.model_validate(row | {"metrics": metrics} | changes)


FAST, SLOW = timed(0.5, {1: 1500, 8: 16000, 32: 20000}), timed(0.9, {1: 900, 8: 9000, 32: 40000})
DOUBTFUL = {"state": "doubtful", "doubts": ["its error is 0.9"]}


@pytest.mark.parametrize(
    ("engines", "goal", "winner", "words"),
    [
        # A package for the compute capability stands beside what was built for the product.
        (
            [engine("fp16 by aotinductor", FAST), engine("fp16 by onnxruntime", SLOW)],
            Goal(),
            "fp16 by aotinductor",
            "is the fastest of fp16 by aotinductor, fp16 by onnxruntime: p50 0.5 ms against 0.9 ms, "
            "at batch 8 on NVIDIA H100",
        ),
        (
            [engine("fp16 by aotinductor", FAST), engine("fp16 by onnxruntime", SLOW)],
            THROUGHPUT,
            "fp16 by onnxruntime",
            "highest throughput of fp16 by onnxruntime, fp16 by aotinductor: 40000 samples/s against "
            "20000 samples/s, at batch 32",
        ),
        (
            [engine("fp16 by aotinductor", FAST), engine("fp16 by onnxruntime", SLOW)],
            Goal(aim=Aim.THROUGHPUT, batch=1),
            "fp16 by aotinductor",
            "1500 samples/s against 900 samples/s, at batch 1",
        ),
        (
            [engine("fp16 by aotinductor", FAST), engine("fp16 by onnxruntime", SLOW)],
            Goal(batch=32),
            "fp16 by onnxruntime",
            "p50 0.8 ms against 1.6 ms, at batch 32",
        ),
        # A gate comes before any figure.
        (
            [
                engine("int8 by tensorrt", timed(0.1), **DOUBTFUL),
                engine("fp16 by tensorrt", timed(0.4)),
                engine("fp16 by onnxruntime", timed(0.6)),
            ],
            Goal(),
            "fp16 by tensorrt",
            "p50 0.4 ms against 0.6 ms",
        ),
        # So does being unpruned.
        (
            [
                engine("fp16 by tensorrt", timed(0.1), prune="2:4"),
                engine("fp32 by tensorrt", timed(0.4)),
                engine("fp32 by onnxruntime", timed(0.6)),
            ],
            Goal(),
            "fp32 by tensorrt",
            "is the fastest",
        ),
        # What was measured on another card can't win.
        (
            [
                engine(
                    "int8 by aotinductor", timed(0.1, settings=H100 | {"device": "NVIDIA H200"})
                ),
                engine(
                    "fp16 by aotinductor", timed(0.3, settings=H100 | {"device": "NVIDIA H200"})
                ),
                engine(
                    "bf16 by aotinductor", timed(0.3, settings=H100 | {"device": "NVIDIA H200"})
                ),
                engine("fp16 by tensorrt", timed(0.5)),
                engine("fp16 by onnxruntime", timed(0.6)),
            ],
            Goal(),
            "fp16 by tensorrt",
            "p50 0.5 ms against 0.6 ms",
        ),
        # Nor what was disturbed.
        (
            [
                engine("int8 by tensorrt", timed(0.1, warnings=["the GPU was slowed by its heat"])),
                engine("fp16 by tensorrt", timed(0.5)),
                engine("fp16 by onnxruntime", timed(0.6)),
            ],
            Goal(),
            "fp16 by tensorrt",
            "p50 0.5 ms against 0.6 ms",
        ),
        # Nothing can be compared: the first runtime's smallest.
        (
            [
                engine("fp16 by onnxruntime", timed(0.1), bytes=10),
                engine("fp16 by aotinductor", bytes=30),
                engine("int8 by aotinductor", bytes=20),
            ],
            Goal(),
            "int8 by aotinductor",
            "is the smallest of int8, fp16: 20 bytes against 30",
        ),
        (
            [engine("fp16 by onnxruntime", timed(0.1)), engine("fp32 by tensorrt", timed(0.4))],
            Goal(batch=64),
            "fp32 by tensorrt",
            "fp32 is the only one by tensorrt, the first runtime: no figures could be compared",
        ),
        ([engine("fp16 by tensorrt")], THROUGHPUT, "fp16 by tensorrt", "fp16 is the only one"),
        # The newest version before all else.
        (
            [
                engine("fp32 by onnxruntime", timed(9.0), version=2),
                engine("fp16 by tensorrt", timed(0.5)),
                engine("fp16 by onnxruntime", timed(0.6)),
            ],
            Goal(),
            "fp32 by onnxruntime",
            "is the only one",
        ),
    ],
)
def test_the_winner_follows_the_gate_and_then_the_goal(
    engines: list[EngineView], goal: Goal, winner: str, words: str
) -> None:
    for found in (engines, engines[::-1]):
        ranked = ranking.rank(found, "h100", goal)
        assert ranked.best.id == winner
        assert words in ranking.reason(ranked)
        chosen_from = {one.id for one in ranked.chosen_from}
        assert chosen_from | ranked.passed_over.keys() == {one.id for one in engines}
        assert not chosen_from & ranked.passed_over.keys()


@pytest.mark.parametrize(
    ("loser", "words"),
    [
        (engine("int8 by tensorrt", timed(0.1), **DOUBTFUL), "failed a gate: its error is 0.9"),
        (engine("int8 by tensorrt", timed(0.1), prune="2:4"), "pruned 2:4"),
        (engine("int8 by tensorrt", timed(0.1), gpu="sm_90"), "built for sm_90, and there are"),
        (engine("int8 by tensorrt"), "wasn't measured"),
        (
            engine("int8 by tensorrt", timed(0.1, settings=H100 | {"device": "NVIDIA H200"})),
            "with different device",
        ),
        (
            engine("int8 by tensorrt", timed(0.1, others_cpu_share=0.5)),
            "other processes used 50% of the CPU",
        ),
    ],
)
def test_what_cannot_win_is_told_why(loser: EngineView, words: str) -> None:
    good = [engine("fp16 by tensorrt", timed(0.5)), engine("fp16 by onnxruntime", timed(0.6))]
    assert words in ranking.rank([loser, *good], "h100").passed_over[loser.id]


def test_engines_compared_at_a_batch_may_have_different_profiles() -> None:
    wide = engine("fp16 by tensorrt", timed(1.0, {8: 7000}, batch=32))
    narrow = engine("fp16 by onnxruntime", timed(0.9))
    assert not ranking.rank([wide, narrow], "h100").compared
    ranked = ranking.rank([wide, narrow], "h100", Goal(batch=8))
    assert ranked.compared
    assert ranked.best is narrow


def test_a_batch_that_was_not_measured_is_told_with_those_that_were() -> None:
    metrics = Metrics.model_validate(FAST)
    assert figures.doubt(metrics, Goal(batch=64)) == (
        "it wasn't measured at batch 64, only at 1, 8, 32"
    )
    assert figures.doubt(metrics, Goal(batch=32)) is None
