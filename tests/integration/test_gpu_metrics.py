"""What is told of an engine on a GPU; the GPU's times are given here. tests/gpu times a real one."""

import subprocess
import sys
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
from workers.measure import gpu, timer
from workers.measure.gpu import Conditions, Loaded, PeersFound
from workers.measure.nvml import Telemetry, Tenants

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


def peers(asked, progress):
    """PyTorch in its own process: as slow as it is here, and its compiler's graph is missing."""
    precision = str(asked.precision)
    figures = {
        "eager": span(3.5).timed(asked.batch).model_copy(update={"precision": "fp32"}),
        "eager_typed": span(2.5).timed(asked.batch).model_copy(update={"precision": precision}),
        "compiled": Timed(reason="RuntimeError: no C compiler", precision=precision),
        "compiled_cuda_graph": Timed(reason="RuntimeError: no C compiler", precision=precision),
        "eager_cuda_graph": span(2.0)
        .timed(asked.batch)
        .model_copy(update={"precision": precision}),
    }
    return PeersFound(figures=figures)


@pytest.fixture
def told(monkeypatch):
    """Time on a GPU that isn't there: what is bound says how long it takes."""
    batches = []

    def timed(bind, arrays, pace, streams, *, during, channels_last):
        batches.append(len(arrays["image"]))
        if len(arrays["image"]) == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with during():
            return span(bind(arrays))

    monkeypatch.setattr(timer, "time_queries", timed)
    monkeypatch.setattr(timer, "Streams", SimpleNamespace)
    monkeypatch.setattr(gpu, "_uuid", lambda: "GPU-1")
    monkeypatch.setattr(gpu, "_used_bytes", lambda: 2_000_000)
    seen = Telemetry(name="NVIDIA H200", energy_j=16.0, slowed={"its power limit"}, others=1)
    monkeypatch.setattr(timer.nvml, "watching", lambda *_: nullcontext(seen))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")

    def tell(precision: Precision = Precision.FP16, *, others=1, warnings=(), **conditions):
        seen.others = others
        beside = Conditions(
            precision=precision,
            batch=Batch.of(INPUTS, PROFILE),
            samples={"image": np.zeros((3, *INPUTS[0].shape[1:]), np.float32)},
            **{"peers": peers, "tf32": True} | conditions,
        )
        loaded = Loaded(
            engine=Engine(),
            memory_bytes=1_000_000,
            tenants=Tenants(uuid="GPU-1", own=1, others=others),
            warnings=warnings,
        )
        return gpu.metrics(loaded, beside, lambda *_: None), batches

    return tell


def test_the_headline_is_the_opt_batch_and_every_batch_of_the_profile_is_tried(told):
    metrics, batches = told()
    assert (metrics.batch, metrics.latency_ms["p50"]) == (8, 2.0)
    assert sorted(set(batches)) == [1, 8, 64]
    assert [entry.samples_per_s for entry in metrics.throughput] == [200.0, 1600.0, None]
    assert "out of memory" in metrics.throughput[2].reason


def test_what_fails_beside_the_engine_is_told_with_its_reason(told):
    metrics, _ = told(others=0)
    assert metrics.cuda_graph.reason == "some of it runs on the CPU"
    assert metrics.compiled.reason == "RuntimeError: no C compiler"
    assert metrics.speed_up == 1.5
    assert metrics.speed_up_over_compiled is None
    assert "no C compiler" in metrics.speed_up_over_compiled_reason
    assert metrics.speed_up_over_best is None


def test_every_figure_names_its_precision(told):
    metrics, _ = told(Precision.INT8)
    assert (metrics.precision, metrics.peers_precision) == ("int8", "fp16")
    assert metrics.cuda_graph.precision == "int8"
    assert [told(one)[0].peers_precision for one in (Precision.FP32, Precision.BF16)] == [
        "fp32",
        "bf16",
    ]


def test_pytorch_is_timed_with_what_the_engine_was(told):
    given = []

    def kept(asked, progress):
        given.append(asked)
        return peers(asked, progress)

    told(Precision.FP8, peers=kept)
    [asked] = given
    assert (asked.precision, asked.batch, asked.pace) == (Precision.FP16, 8, timer.PACE)
    assert asked.arrays["image"].shape == (8, 3)
    assert asked.tenants == Tenants(uuid="GPU-1", own=1, others=1)


def test_an_engine_built_without_tf32_says_so_in_what_must_be_equal(told):
    assert [told(tf32=tf32)[0].settings.tf32 for tf32 in (True, False)] == [True, False]


def test_an_onnx_source_has_no_pytorch_beside_it(told):
    metrics, _ = told(peers=None)
    assert metrics.speed_up is None
    assert "PyTorch" in metrics.eager.reason
    assert "PyTorch" in metrics.compiled_cuda_graph.reason


def test_what_held_the_gpu_back_is_a_warning(told):
    metrics, _ = told()
    assert metrics.warnings == [
        "the GPU's clocks were throttled by its power limit",
        "1 other processes were on the GPU",
    ]
    assert metrics.gpu.mj_per_sample == 10.0


def test_figures_beside_other_processes_are_not_compared(told):
    metrics, _ = told(others=2)
    assert metrics.speed_up is None
    assert metrics.speed_up_reason == (
        "2 other processes were on the GPU while the engine was timed"
    )


def test_what_is_wrong_with_the_engine_itself_is_said_of_each_of_its_figures(told, monkeypatch):
    monkeypatch.setattr(Engine, "bind_graph", Engine.bind)
    metrics, _ = told(warnings=["some of the graph's MatMul run on the CPU"])
    for figure in (metrics, metrics.cuda_graph):
        assert figure.warnings[0] == "some of the graph's MatMul run on the CPU"


def test_the_engines_process_loads_no_compiler_for_its_peers():
    loaded = (
        "import sys, workers.stages.measure; print('torch._inductor.compile_fx' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("precision", list(Precision))
def test_what_is_told_of_a_gpu_is_what_a_worker_takes(told, precision):
    # Others on the GPU gave memory back while the engine was loaded.
    metrics, _ = told(precision)
    memory = GpuMemory(engine_bytes=-4096)
    metrics = metrics.model_copy(update={"memory": memory})
    found = MeasureFacts(accuracy=Accuracy(), metrics=metrics, metrics_reason=None)
    stages.check_facts(JobKind.MEASURE, found.model_dump(mode="json"))
