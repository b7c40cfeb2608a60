"""What is told of an engine on a GPU; the GPU's times are given here. tests/gpu times a real one."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from farm import stages
from farm.errors import EngineBuildFailed
from farm.reports.accuracy import Accuracy
from farm.reports.metrics import GpuMemory, Timed
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.stages import JobKind, MeasureFacts
from workers.clocks.cuda import Query, Span
from workers.inputs.batch import Batch
from workers.measure import gpu
from workers.measure.gpu import Conditions, Loaded
from workers.measure.nvml import Telemetry

INPUTS = [TensorSpec(name="image", dtype="float32", shape=("batch", 3))]
PROFILE = {"image": ShapeRange(min=(1, 3), opt=(8, 3), max=(64, 3))}


def span(compute_ms: float) -> Span:
    query = Query(h2d_ms=0.25, compute_ms=compute_ms, d2h_ms=0.25, enqueue_ms=0.1)
    return Span(queries=[query] * 200, seconds=1.0)


class Engine:
    """Binds to the time that it takes; a graph of it can't be captured."""

    def bind(self, inputs):
        return 1.5

    def bind_graph(self, inputs):
        raise EngineBuildFailed("some of it runs on the CPU", hint="-")


class OnGpu:
    """PyTorch that is twice as slow as the engine, and whose compiler is missing."""

    def __init__(self, program):
        pass

    def eager(self, dtype):
        return lambda _: 3.5 if dtype is None else 2.5

    def compiled(self, dtype):
        raise RuntimeError("no C compiler\nand a long story")


@pytest.fixture
def told(monkeypatch):
    """Time on a GPU that isn't there: what is bound says how long it takes."""
    batches = []

    def timed(bind, arrays, pace, streams):
        batches.append(len(arrays["image"]))
        if len(arrays["image"]) == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return span(bind(arrays))

    monkeypatch.setattr(gpu, "time_queries", timed)
    monkeypatch.setattr(gpu, "Streams", SimpleNamespace)
    monkeypatch.setattr(gpu, "PyTorchOnGpu", OnGpu)
    monkeypatch.setattr(gpu, "_uuid", lambda: "GPU-1")
    monkeypatch.setattr(gpu, "_used_bytes", lambda: 2_000_000)
    seen = Telemetry(name="NVIDIA H200", energy_j=16.0, slowed={"its power limit"}, others=1)
    monkeypatch.setattr(gpu.nvml, "watching", lambda *_: nullcontext(seen))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")

    def tell(program: object = "a program", precision: Precision = Precision.FP16):
        beside = Conditions(
            program=program,
            precision=precision,
            batch=Batch.of(INPUTS, PROFILE),
            samples={"image": np.zeros((3, *INPUTS[0].shape[1:]), np.float32)},
        )
        loaded = Loaded(engine=Engine(), memory_bytes=1_000_000, other_processes=1)
        return gpu.metrics(loaded, beside, lambda *_: None), batches

    return tell


def test_the_headline_is_the_opt_batch_and_every_batch_of_the_profile_is_tried(told):
    metrics, batches = told()
    assert (metrics.batch, metrics.latency_ms["p50"]) == (8, 2.0)
    assert sorted(set(batches)) == [1, 8, 64]
    assert [entry.samples_per_s for entry in metrics.throughput] == [200.0, 1600.0, None]
    assert "out of memory" in metrics.throughput[2].reason


def test_what_fails_beside_the_engine_is_told_with_its_reason(told):
    metrics, _ = told()
    assert metrics.cuda_graph == Timed(reason="some of it runs on the CPU")
    assert metrics.compiled.reason == "RuntimeError: no C compiler"
    assert metrics.speed_up == 2.0
    assert metrics.speed_up_over_compiled is None


def test_an_fp32_engine_needs_no_autocast_beside_it(told):
    assert told(precision=Precision.FP32)[0].eager_autocast is None
    assert told(precision=Precision.INT8)[0].eager_autocast.autocast == "float16"
    assert told(precision=Precision.BF16)[0].eager_autocast.autocast == "bfloat16"


def test_an_onnx_source_has_no_pytorch_beside_it(told):
    metrics, _ = told(program=None)
    assert metrics.speed_up is None
    assert "PyTorch" in metrics.eager.reason


def test_what_held_the_gpu_back_is_a_warning(told):
    metrics, _ = told()
    assert metrics.warnings == [
        "the GPU's clocks were throttled by its power limit",
        "1 other processes were on the GPU",
    ]
    assert metrics.gpu.mj_per_sample == 10.0


@pytest.mark.parametrize("precision", list(Precision))
def test_what_is_told_of_a_gpu_is_what_a_worker_takes(told, precision):
    # Others on the GPU gave memory back while the engine was loaded.
    metrics, _ = told(precision=precision)
    memory = GpuMemory(engine_bytes=-4096)
    metrics = metrics.model_copy(update={"memory": memory})
    found = MeasureFacts(accuracy=Accuracy(), metrics=metrics, metrics_reason=None)
    stages.check_facts(JobKind.MEASURE, found.model_dump(mode="json"))
