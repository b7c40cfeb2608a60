"""What is kept of a calibration's histograms: right counts, the ranges of the finished graph, and bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from farm.reports.histograms import BINS, Histograms
from farm.specs.accuracy_goal import Pins
from farm.specs.precision import Precision
from farm.stages import CalibrateParams
from tests.graphs import small_graph
from tests.stage_bench import Bench, Digits, Ran, save_npz
from workers.quantize import calibrated, kept_histograms, placement
from workers.quantize.calibrated import Calibration
from workers.quantize.histograms import Histogram


def told(made: Ran) -> Histograms:
    return Histograms.model_validate_json(made.outputs["histograms"].read_bytes(), strict=True)


def test_small_bins_hold_every_value_and_are_of_equal_width() -> None:
    values = np.random.default_rng(0).exponential(1, 50_000).astype(np.float32)
    seen = Histogram.empty(counted=True)
    seen.add(-values)
    found = np.array(kept_histograms.binned(seen))
    exact, _ = np.histogram(values, BINS, (0, float(values.max())))
    assert len(found) == BINS
    assert found.sum() == values.size
    # A bin's values count as evenly spread where it lies in two of these.
    assert np.abs(np.cumsum(found) - np.cumsum(exact)).max() <= values.size / 128


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.inf, np.nan]])
def test_without_a_magnitude_there_are_no_bins(values: list[float]) -> None:
    seen = Histogram.empty(counted=True)
    seen.add(np.array(values, np.float32))
    assert kept_histograms.binned(seen) == []


def test_a_calibration_keeps_a_histogram_and_the_ranges_of_each_tensor(
    digits: Digits,
) -> None:
    found = told(digits.calibrated)
    quantized = onnx.load(str(digits.int8))
    scales = placement.scales_of(quantized)
    noise = digits.calibrated.facts["snr_db"]
    assert {one.tensor for one in found.tensors} <= scales.keys()
    assert noise.keys() < {one.tensor for one in found.tensors}  # of inputs nothing is lost before
    ratios = [noise.get(one.tensor, np.inf) for one in found.tensors]
    assert ratios == sorted(ratios)
    for one in found.tensors:
        assert len(one.counts) == BINS
        assert one.range == pytest.approx(scales[one.tensor] * 127, rel=1e-6)
        assert {"max", "mse", "entropy", "percentile", one.method} == one.ranges.keys() | {
            one.method
        }
        assert one.ranges["max"] == pytest.approx(one.largest)
        assert one.range == pytest.approx(one.ranges[one.method], rel=1e-5)
        assert one.clipped is not None
    [image] = [one for one in found.tensors if one.tensor == "image"]
    assert sum(image.counts) == 64 * 64


def test_what_stays_in_floats_has_no_range(bench: Bench, digits: Digits) -> None:
    first = next(
        node.name for node in onnx.load(str(digits.onnx)).graph.node if "Conv" in node.op_type
    )
    made = bench.run(
        CalibrateParams(pins=Pins(floats=(first,))),
        onnx=digits.onnx,
        calibration=digits.calibration,
    )
    ranges = {one.tensor: one.range for one in told(made).tensors}
    assert ranges.pop("image") is None
    assert all(ranges.values())


def test_a_method_that_looks_at_extremes_alone_has_a_range_and_no_counts(
    bench: Bench, digits: Digits
) -> None:
    made = bench.run(
        CalibrateParams(method="max"), onnx=digits.onnx, calibration=digits.calibration
    )
    for one in told(made).tensors:
        assert (one.counts, one.clipped, one.method) == ([], None, "max")
        assert one.range == pytest.approx(one.largest, rel=1e-6)


def test_a_range_in_fp8_is_the_magnitude_that_its_scale_stands_for() -> None:
    scale = float(placement.scale_of(3.0, Precision.FP8))
    assert placement.largest_of(scale, Precision.FP8) == pytest.approx(3.0)


def test_of_very_many_tensors_the_noisiest_are_kept_with_names_of_bounded_length(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kept_histograms, "MOST_TENSORS", 1)
    graph = onnx.load(
        str(small_graph(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]), shape=("n",)))
    )
    found = kept_histograms.recorded(
        [
            kept_histograms.Kept(
                group=(name,), method="max", limit=1, largest=1, limits={"max": 1}, counts=()
            )
            for name in ("quiet", "n" * 5000)
        ],
        graph,
        {"quiet": 40.0, "n" * 5000: 3.0},
        Precision.INT8,
    )
    assert [one.tensor for one in found.tensors] == ["n" * 200]
    assert found.left_out == 1


def test_each_tensor_with_a_scale_of_its_own_is_kept(bench: Bench, tmp_path: Path) -> None:
    weights = {name: np.eye(32, dtype=np.float32) for name in "uvw"}
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "v"], ["b"], name="b"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="y"),
    ]
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 32), weights=weights)
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    made = bench.run(CalibrateParams(), onnx=source, calibration=save_npz(tmp_path / "x.npz", x=x))
    found = told(made)
    assert sorted(one.tensor for one in found.tensors) == ["a", "b", "x"]
    assert [one.sharing for one in found.tensors] == [0, 0, 0]
    assert found.left_out == 0


def test_of_two_calibrations_the_facts_are_those_of_the_graph_that_was_kept(
    digits: Digits,
) -> None:
    graph = onnx.load(str(digits.int8))
    scales = placement.scales_of(graph)

    def calibration(factor: float) -> Calibration:
        limits = {n: placement.largest_of(s, Precision.INT8) * factor for n, s in scales.items()}
        kept = [
            kept_histograms.Kept(
                group=(name,), method="max", limit=limit, largest=limit, limits={}, counts=()
            )
            for name, limit in limits.items()
        ]
        return Calibration(
            samples=1,
            batches=1,
            chosen={},
            not_finite={},
            largest={},
            extreme=np.zeros(0, np.intp),
            kept=kept,
        )

    plain, equalised = calibration(2.0), calibration(1.0)
    assert calibrated.of_graph([plain, equalised], graph, Precision.INT8) is equalised
    assert calibrated.of_graph([equalised, plain], graph, Precision.INT8) is equalised
