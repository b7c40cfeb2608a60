"""Speed-ups over PyTorch: like with like, or the reason why there is none."""

import pytest

from farm.reports.metrics import GpuWhileTimed, Metrics, Timed
from farm.reports.speed_ups import with_speed_ups

NAMES = (
    "speed_up",
    "speed_up_over_compiled",
    "speed_up_over_compiled_with_cuda_graph",
    "speed_up_over_best",
)


def timed(p50_ms: float, precision: str = "fp16", **more: object) -> Timed:
    return Timed(latency_ms={"p50": p50_ms}, precision=precision, host_bound=False, **more)


def engine(p50_ms: float = 2.0, **changes: object) -> Metrics:
    """An fp16 engine of an fp32 source, beside all that PyTorch can do."""
    given: dict[str, object] = {
        "latency_ms": {"p50": p50_ms},
        "precision": "fp16",
        "host_bound": False,
        "peers_precision": "fp16",
        "cuda_graph": timed(1.0),
        "eager": timed(9.0, "fp32"),
        "eager_typed": timed(6.0),
        "compiled": timed(3.0),
        "compiled_cuda_graph": timed(0.8),
        "eager_cuda_graph": timed(4.0),
    }
    return Metrics(**(given | changes))


def ratios(metrics: Metrics) -> list[float | None]:
    """All four; every one has either a value or a reason."""
    found = with_speed_ups(metrics)
    for name in NAMES:
        assert (getattr(found, name) is None) == (getattr(found, f"{name}_reason") is not None)
    return [getattr(found, name) for name in NAMES]


def reasons(metrics: Metrics) -> list[str | None]:
    found = with_speed_ups(metrics)
    return [getattr(found, f"{name}_reason") for name in NAMES]


def test_each_speed_up_compares_like_with_like():
    assert ratios(engine()) == [3.0, 1.5, 0.8, 0.8]
    assert with_speed_ups(engine()).best_of_pytorch == "compiled_cuda_graph"


def test_pytorchs_best_is_the_fastest_of_its_ways_and_the_engines_of_its_own():
    metrics = engine(compiled=timed(0.7), cuda_graph=timed(2.5))
    assert ratios(metrics) == [3.0, 0.35, 0.32, 0.35]
    assert with_speed_ups(metrics).best_of_pytorch == "compiled"


def test_the_source_as_it_is_stands_beside_an_engine_of_its_precision_alone():
    fp32 = {
        name: timed(getattr(engine(), name).p50_ms, "fp32")
        for name in ("cuda_graph", "eager", "compiled", "compiled_cuda_graph", "eager_cuda_graph")
    }
    metrics = engine(precision="fp32", peers_precision="fp32", eager_typed=None, **fp32)
    assert ratios(metrics) == [4.5, 1.5, 0.8, 0.8]
    # An fp16 engine whose typed twin is missing isn't compared with fp32 instead.
    assert ratios(engine(eager_typed=None))[0] is None
    assert reasons(engine(eager_typed=None))[0] == "PyTorch eager computed in fp32, not in fp16"


def test_an_int8_engine_is_compared_with_pytorch_in_fp16_and_says_so():
    metrics = engine(precision="int8", cuda_graph=timed(1.0, "int8"))
    assert ratios(metrics) == [3.0, 1.5, 0.8, 0.8]
    assert with_speed_ups(metrics).peers_precision == "fp16"


@pytest.mark.parametrize(
    ("changes", "told", "words"),
    [
        # Of another precision.
        ({"compiled": timed(3.0, "fp32")}, [1, 0, 1, 1], "compiled computed in fp32, not in fp16"),
        ({"eager_typed": timed(6.0, "bf16")}, [0, 1, 1, 1], "eager computed in bf16"),
        ({"compiled_cuda_graph": timed(0.8, "fp32")}, [1, 1, 0, 0], "graph computed in fp32"),
        # Host-bound on either side.
        ({"host_bound": True}, [0, 0, 1, 1], "the engine is host-bound"),
        ({"host_bound": True, "cuda_graph": Timed(reason="no")}, [0, 0, 0, 0], "host-bound"),
        (
            {"compiled": Timed(**{**timed(3.0).model_dump(), "host_bound": True})},
            [1, 0, 1, 1],
            "bound",
        ),
        (
            {"compiled_cuda_graph": Timed(**{**timed(0.8).model_dump(), "host_bound": True})},
            [1, 1, 0, 0],
            "PyTorch compiled, with a CUDA graph is host-bound",
        ),
        # Earlier releases told the times alone.
        (
            {"host_bound": None, "enqueue_ms": {"p50": 1.7}, "compute_ms": {"p50": 1.8}},
            [0, 0, 1, 1],
            "the engine is host-bound",
        ),
        # Missing on either side.
        ({"cuda_graph": Timed(reason="some run on the CPU")}, [1, 1, 0, 1], "some run on the CPU"),
        ({"cuda_graph": None}, [1, 1, 0, 1], "wasn't measured"),
        ({"compiled": Timed(reason="no C compiler")}, [1, 0, 1, 1], "no C compiler"),
        ({"eager": Timed(reason="x"), "eager_typed": Timed(reason="lost")}, [0, 1, 1, 1], "lost"),
        (
            {"compiled_cuda_graph": Timed(reason="the process died")},
            [1, 1, 0, 0],
            "the process died",
        ),
        # Somebody else on the GPU, beside either side.
        ({"gpu": GpuWhileTimed(other_processes=2)}, [0, 0, 1, 1], "2 other processes"),
        (
            {"cuda_graph": timed(1.0, gpu=GpuWhileTimed(other_processes=1))},
            [1, 1, 0, 0],
            "1 other processes were on the GPU while the engine with a CUDA graph was timed",
        ),
        (
            {"compiled": timed(3.0, gpu=GpuWhileTimed(other_processes=1))},
            [1, 0, 1, 1],
            "while PyTorch compiled was timed",
        ),
    ],
)
def test_what_is_unlike_or_disturbed_has_a_reason_instead(changes, told, words):
    found = ratios(engine(**changes))
    assert [value is not None for value in found] == [bool(one) for one in told]
    refused = [reason for reason in reasons(engine(**changes)) if reason]
    assert words in " | ".join(refused)


def test_pytorchs_best_is_unknown_without_its_compiled_graph():
    metrics = with_speed_ups(engine(compiled_cuda_graph=Timed(reason="it ran out of memory")))
    assert metrics.best_of_pytorch is None
    assert metrics.speed_up_over_best_reason == (
        "PyTorch's best isn't known: PyTorch compiled, with a CUDA graph has no figure: "
        "it ran out of memory"
    )


def test_a_source_that_pytorch_cannot_run_has_reasons_alone():
    missing = dict.fromkeys(
        ("eager", "eager_typed", "compiled", "compiled_cuda_graph", "eager_cuda_graph"),
        Timed(reason="the source isn't a program that PyTorch can run"),
    )
    assert ratios(engine(**missing)) == [None] * 4


def test_an_engine_is_at_its_best_with_a_graph_only_if_that_was_measured_and_is_faster():
    assert engine().at_its_best.p50_ms == 1.0
    assert engine(cuda_graph=timed(2.5)).at_its_best.p50_ms == 2.0
    assert engine(cuda_graph=Timed(reason="no")).at_its_best.p50_ms == 2.0
    assert engine(cuda_graph=None).at_its_best.p50_ms == 2.0


def test_what_earlier_releases_stored_reads_and_is_written_back_as_it_was():
    stored = {
        "latency_ms": {"p50": 2.0},
        "eager_autocast": {"latency_ms": {"p50": 3.0}, "autocast": "float16"},
        "cuda_graph": {"latency_ms": {"p50": 1.0}},
        "speed_up_over_compiled_with_cuda_graph": 2.0,
        "warnings": ["x"],
        "gpu": {"other_processes": 0},
    }
    read = Metrics.model_validate(stored)
    assert read.model_dump(mode="json") == stored
    assert read.at_its_best.p50_ms == 1.0
