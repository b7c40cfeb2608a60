"""Calibration's passes run on the GPU where there is one, and find there what they find on the CPU."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from farm.machine import gpus
from farm.reports.histograms import Histograms
from farm.stages import CalibrateParams, ExportParams
from tests.stage_bench import Bench, save_npz
from workers import demo
from workers.backends.ort import cpu
from workers.quantize import activations, placement, trials
from workers.runner import toolchain

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()
needs_gpu = pytest.mark.skipif(
    not FOUND or not toolchain.has_cuda_provider(), reason="no GPU, or no onnxruntime-gpu, here"
)
ON_GPU, ON_CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def given(tmp_path):
    """A network, and samples for it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 32),
    )
    source = tmp_path / "net.pt2"
    demo.save_program(net.eval(), torch.zeros(2, 3, 16, 16), source)
    exported = Bench(tmp_path).run(ExportParams(format="pt2"), source=source).outputs["onnx"]
    [name] = (value.name for value in onnx.load(str(exported)).graph.input)
    random = np.random.default_rng(0)
    samples = random.standard_normal((64, 3, 16, 16)).astype(np.float32)
    return {
        "onnx": exported,
        "calibration": save_npz(tmp_path / "data.npz", **{name: samples}),
    }


@pytest.fixture
def used(monkeypatch):
    """What runs each session of a pass."""
    found = []
    model = cpu.OrtModel

    def noted(*args, **options):
        made = model(*args, **options)
        if "providers" in options:
            found.append(made._session.get_providers()[0])
        return made

    monkeypatch.setattr(activations, "OrtModel", noted)
    monkeypatch.setattr(trials, "OrtModel", noted)
    return found


def calibrated(folder, given, method):
    folder.mkdir()
    made = Bench(folder).run(CalibrateParams(method=method), **given)
    scales = placement.scales_of(onnx.load(str(made.outputs["typed"])))
    told = Histograms.model_validate_json(made.outputs["histograms"].read_bytes())
    return scales, {one.tensor: one for one in told.tensors}, made.facts


@needs_gpu
@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_a_gpu_finds_the_same_scales_as_the_cpu_but_for_rounding(
    tmp_path, monkeypatch, given, used, method
):
    scales, histograms, facts = calibrated(tmp_path / "gpu", given, method)
    assert set(used) == {ON_GPU}
    used.clear()
    for module in (activations, trials):
        monkeypatch.setattr(module, "fastest_providers", lambda: [ON_CPU])
    plain, its, its_facts = calibrated(tmp_path / "cpu", given, method)
    assert set(used) == {ON_CPU}
    assert len(scales) > 2
    assert scales == pytest.approx(plain, rel=1e-3)
    assert facts["snr_db"] == pytest.approx(its_facts["snr_db"], abs=0.2)
    for name, one in histograms.items():
        assert sum(one.counts) == sum(its[name].counts)
        assert one.largest == pytest.approx(its[name].largest, rel=1e-5)


@needs_gpu
def test_auto_compares_whole_graphs_on_the_gpu_too(tmp_path, given, used):
    scales, histograms, facts = calibrated(tmp_path / "gpu", given, "auto")
    assert set(used) == {ON_GPU}
    assert sum(facts["chosen"].values()) == len(histograms)
    assert all(scale > 0 for scale in scales.values())
