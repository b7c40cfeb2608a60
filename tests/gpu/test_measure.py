"""Engines of ONNX Runtime's CUDA provider: built, run and timed on this machine's GPU."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from farm.machine import gpus
from farm.specs.runtime import Target
from farm.stages import BuildParams, CastParams, ExportParams, JobKind, MeasureParams
from workers import demo
from workers.measure import gpu, nvml
from workers.runner import toolchain
from workers.stages.base import Stage, run

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()
needs_gpu = pytest.mark.skipif(
    not FOUND or not toolchain.has_cuda_provider(), reason="no GPU, or no onnxruntime-gpu, here"
)
KINDS = {
    ExportParams: JobKind.EXPORT,
    CastParams: JobKind.CAST,
    BuildParams: JobKind.BUILD,
    MeasureParams: JobKind.MEASURE,
}


@pytest.fixture
def stage(tmp_path):
    runs = iter(range(100))

    def one(params, **inputs):
        workdir = tmp_path / str(next(runs))
        workdir.mkdir()
        return run(
            Stage(
                kind=KINDS[type(params)],
                params=params,
                inputs=inputs,
                workdir=workdir,
                progress=lambda *_: None,
            )
        )

    return one


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    path = tmp_path / "net.pt2"
    demo.save_program(net.eval(), torch.zeros(2, 3, 64, 64), path)
    return path


@pytest.fixture
def measured(stage, source, monkeypatch):
    """An engine of a precision, built and measured."""
    monkeypatch.setattr(gpu, "PACE", replace(gpu.PACE, duration_s=0.5))

    def one(precision):
        target = Target(runtime="onnxruntime", gpu=FOUND[0].tags[-1])
        typed = stage(ExportParams(format="pt2"), source=source).outputs["onnx"]
        if precision != "fp32":
            typed = stage(CastParams(precision=precision), onnx=typed).outputs["typed"]
        params = BuildParams(
            target=target, compute_capability=FOUND[0].compute_capability, precision=precision
        )
        built = stage(params, typed=typed)
        facts = stage(
            MeasureParams(precision=precision, target=target, format="pt2"),
            source=source,
            typed=typed,
            engine=built.outputs["engine"],
        ).facts.model_dump(mode="json")
        print(facts["metrics"])
        return facts

    return one


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_engine_is_timed_beside_pytorch_on_its_gpu(measured, precision):
    facts = measured(precision)
    accuracy, metrics = facts["accuracy"], facts["metrics"]
    assert accuracy["measured_on"] == "engine"
    assert accuracy["cosine_mean"] > 0.999
    parts = [metrics[part]["p50"] for part in ("h2d_ms", "compute_ms", "d2h_ms")]
    assert all(part > 0 for part in parts)
    assert np.isclose(sum(parts), metrics["latency_ms"]["p50"], rtol=0.2)
    assert metrics["cuda_graph"]["enqueue_ms"]["p50"] < metrics["enqueue_ms"]["p50"]
    assert [entry["batch"] for entry in metrics["throughput"]] == [1, 8, 64]
    assert metrics["gpu"]["sm_clock_mhz"]["max"] > 0
    assert metrics["gpu"]["power_w"]["median"] > 0
    assert metrics["memory"]["engine_bytes"] > 0
    assert metrics["settings"]["device"] == FOUND[0].name


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_pytorch_stands_beside_it_in_its_precision_with_and_without_a_cuda_graph(
    measured, precision
):
    metrics = measured(precision)["metrics"]
    assert metrics["peers_precision"] == precision
    assert metrics["eager"]["precision"] == "fp32"
    names = ["compiled", "compiled_cuda_graph", "eager_cuda_graph"]
    for name in names if precision == "fp32" else [*names, "eager_typed"]:
        assert metrics[name]["latency_ms"]["p50"] > 0, metrics[name]
        assert metrics[name]["precision"] == precision
        # Beside the engine's process, which waits, and which isn't somebody else's.
        assert metrics[name]["gpu"]["other_processes"] == metrics["gpu"]["other_processes"]
    plain, graph = metrics["compiled"], metrics["compiled_cuda_graph"]
    assert graph["enqueue_ms"]["p50"] < plain["enqueue_ms"]["p50"]
    for name in ("", "_over_compiled", "_over_compiled_with_cuda_graph", "_over_best"):
        ratio, reason = metrics[f"speed_up{name}"], metrics[f"speed_up{name}_reason"]
        assert (ratio is None) == (reason is not None)


BUSY = "import torch; torch.zeros(1, device='cuda'); print('there', flush=True); input()"


@needs_gpu
def test_figures_beside_another_process_on_the_gpu_are_not_compared(measured):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "there\n"
        if not nvml.pids_on(FOUND[0].uuid):
            other.communicate("")
            pytest.skip("NVML lists no processes in this container")
        metrics = measured("fp32")["metrics"]
        other.communicate("\n")
    assert metrics["gpu"]["other_processes"] >= 1
    assert metrics["compiled"]["gpu"]["other_processes"] >= 1
    assert metrics["speed_up"] is None
    assert metrics["speed_up_over_best"] is None
