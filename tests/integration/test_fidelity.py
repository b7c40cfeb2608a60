"""Signal-to-noise by layer: right values, and bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from farm.stages import CalibrateParams
from tests.graphs import small_graph
from tests.stage_bench import Bench, Digits
from workers.quantize import fidelity


def rounded(folder: Path, scale: float, *, layers: int = 1) -> onnx.ModelProto:
    """A graph that doubles its input so many times, and rounds each result to a multiple of ``scale``."""
    nodes, name = [], "x"
    for n in range(layers):
        nodes += [
            helper.make_node("Add", [name, name], [f"a{n}"], name=f"add{n}"),
            helper.make_node("QuantizeLinear", [f"a{n}", "scale", "zero"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "scale", "zero"], [f"d{n}"]),
        ]
        name = f"d{n}"
    nodes.append(helper.make_node("Identity", [name], ["y"]))
    weights = {"scale": np.array(scale, np.float32), "zero": np.array(0, np.int8)}
    return onnx.load(str(small_graph(folder / "r.onnx", *nodes, shape=("n", 4), weights=weights)))


def test_a_layers_noise_is_that_of_the_rounding_before_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (500, 4)).astype(np.float32)
    found = fidelity.by_layer(rounded(tmp_path, 0.05, layers=2), [{"x": x}], tmp_path)
    exact = 4 * x.astype(np.float64)
    noise = 2 * (np.rint(2 * x / np.float32(0.05)) * np.float32(0.05) - 2 * x)
    expected = 10 * np.log10((exact**2).sum() / (noise**2).sum())
    assert found["a0"] == 150  # nothing was rounded yet
    assert found["a1"] == pytest.approx(expected, abs=0.02)


def test_ratios_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)
    model = rounded(tmp_path, 0.1, layers=3)
    whole = fidelity.by_layer(model, [{"x": x}], tmp_path)
    parts = fidelity.by_layer(model, [{"x": x[:5]}, {"x": x[5:]}], tmp_path)
    assert whole == parts


@pytest.mark.parametrize(
    ("signal", "noise", "ratio"), [(100, 1, 20), (1, 0, 150), (0, 1, -150), (1, 1e40, -150)]
)
def test_decibels(signal: float, noise: float, ratio: float) -> None:
    assert fidelity.decibels(signal, noise) == ratio


def test_of_very_many_layers_the_noisiest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "MOST_LAYERS", 2)
    x = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)
    found = fidelity.by_layer(rounded(tmp_path, 0.1, layers=4), [{"x": x}], tmp_path)
    assert len(found) == 2
    assert "a0" not in found


def test_infinite_values_have_no_part_in_it(tmp_path: Path) -> None:
    x = np.full((2, 4), 0.26, np.float32)
    x[0, 0], x[1, 3] = np.inf, np.nan
    found = fidelity.by_layer(rounded(tmp_path, 0.1, layers=2), [{"x": x}], tmp_path)
    assert found["a1"] == pytest.approx(20 * np.log10(1.04 / 0.04), abs=0.1)


def test_a_calibration_tells_the_ratio_of_each_quantised_tensor(
    bench: Bench, digits: Digits
) -> None:
    inputs = {"onnx": digits.onnx, "calibration": digits.calibration}
    good = bench.run(CalibrateParams(), **inputs).facts["snr_db"]
    bad = bench.run(CalibrateParams(method="percentile", percentile=50), **inputs).facts["snr_db"]
    assert good.keys() == bad.keys()
    assert len(good) > 2
    assert min(good.values()) > 15
    assert min(bad.values()) < min(good.values())
