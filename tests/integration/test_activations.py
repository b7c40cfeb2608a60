"""Calibration of real graphs: ModelOpt's placement, the farm's scales."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelopt.onnx.quantization import quantize
from onnx import helper, numpy_helper

from farm.errors import InvalidData
from farm.specs.precision import Precision
from farm.stages import CalibrateParams
from tests.graphs import small_graph
from tests.stage_bench import Bench, Digits, batch_profile, save_npz
from workers.backends.ort import cpu
from workers.graphs import walk
from workers.inputs.batch import Batch
from workers.quantize import activations, calibrated, placement, trials

METHODS = ("auto", "max", "percentile", "entropy", "mse")


class Reader:
    """Batches as ModelOpt reads them."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches, self._at = batches, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._at += 1
        return self._batches[self._at - 1] if self._at <= len(self._batches) else None

    def get_first(self) -> dict[str, np.ndarray]:
        return self._batches[0]

    def rewind(self) -> None:
        self._at = 0


def scales(path: Path) -> dict[str, float]:
    """Quantised activation → its scale."""
    graph = onnx.load(str(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0]: float(values[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }


def by_modelopt(source: Path, inputs: dict[str, np.ndarray], made: Path, mode: str) -> Path:
    count = len(next(iter(inputs.values())))
    quantize(
        str(source),
        quantize_mode=mode,
        calibration_method="max",
        calibration_data_reader=Reader(
            [{n: a[at : at + 8] for n, a in inputs.items()} for at in range(0, count, 8)]
        ),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(made),
    )
    return made


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_max_gives_modelopts_scales_to_the_bit(
    precision: str, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(digits.onnx.read_bytes())
    data = dict(np.load(digits.calibration))
    expected = scales(by_modelopt(source, data, tmp_path / "typed.onnx", precision))
    params = CalibrateParams(method="max", precision=precision)
    found = scales(
        bench.run(params, onnx=digits.onnx, calibration=digits.calibration).outputs[
            "typed" if precision == "int8" else "typed_fp16"
        ]
    )
    assert len(found) >= 2
    if precision == "int8":
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-3)  # in fp16


def joined(folder: Path) -> Path:
    """Two branches of very different ranges, joined by a Concat before a convolution."""
    rng = np.random.default_rng(0)
    weights = {
        "wa": rng.normal(0, 1, (32, 32, 3, 3)).astype(np.float32),
        "wb": rng.normal(0, 9, (32, 32, 3, 3)).astype(np.float32),
        "wc": rng.normal(0, 1, (32, 64, 3, 3)).astype(np.float32),
        "wd": rng.normal(0, 1, (32, 32, 3, 3)).astype(np.float32),
        "we": rng.normal(0, 1, (32, 32, 3, 3)).astype(np.float32),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], name="a", **pads),
        helper.make_node("Relu", ["a"], ["ra"], name="ra"),
        helper.make_node("Conv", ["x", "wb"], ["b"], name="b", **pads),
        helper.make_node("Relu", ["b"], ["rb"], name="rb"),
        helper.make_node("Conv", ["ra", "wd"], ["d"], name="d", **pads),
        helper.make_node("Conv", ["rb", "we"], ["e"], name="e", **pads),
        helper.make_node("Concat", ["ra", "rb"], ["c"], name="c", axis=1),
        helper.make_node("Conv", ["c", "wc"], ["f"], name="f", **pads),
        helper.make_node("Add", ["d", "e"], ["g"], name="g"),
        helper.make_node("Add", ["f", "g"], ["y"], name="h"),
    ]
    return small_graph(folder / "joined.onnx", *nodes, shape=("n", 32, 6, 6), weights=weights)


@pytest.fixture(name="joined_data")
def _joined_data(tmp_path: Path) -> Path:
    x = np.random.default_rng(1).standard_normal((40, 32, 6, 6)).astype(np.float32)
    return save_npz(tmp_path / "x.npz", x=x)


def test_max_keeps_modelopts_shared_scales(bench: Bench, joined_data: Path, tmp_path: Path) -> None:
    source = joined(tmp_path)
    expected = scales(
        by_modelopt(source, dict(np.load(joined_data)), tmp_path / "typed.onnx", "int8")
    )
    made = bench.run(CalibrateParams(method="max"), onnx=source, calibration=joined_data)
    assert scales(made.outputs["typed"]) == expected
    assert expected["ra"] == expected["rb"] == expected["c"]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_concat_joins_shares_one_scale_by_every_method(
    method: str, bench: Bench, joined_data: Path, tmp_path: Path
) -> None:
    made = bench.run(CalibrateParams(method=method), onnx=joined(tmp_path), calibration=joined_data)
    found = scales(made.outputs["typed"])
    assert found["ra"] == found["rb"] == found["c"] != found["x"]
    assert sum(made.facts["chosen"].values()) == len(found) - 2
    assert made.facts["chosen"].keys() <= {*METHODS[1:], "mild-mse", "middle"}


@pytest.mark.parametrize("method", METHODS)
def test_scales_do_not_depend_on_the_batch_size(method: str, bench: Bench, digits: Digits) -> None:
    inputs = {"onnx": digits.onnx, "calibration": digits.calibration}
    found = [
        scales(
            bench.run(CalibrateParams(method=method, batch_size=size), **inputs).outputs["typed"]
        )
        for size in (8, 2, 5, 64)
    ]
    assert found[0] == found[1] == found[2] == found[3]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_counts_of_a_graph_do_not_depend_on_how_samples_fall_into_batches(
    digits: Digits, cuts: list[int]
) -> None:
    images = np.load(digits.calibration)["image"][:40]
    model = onnx.load(str(digits.onnx))
    names = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Relu")]
    session = activations.observed(model, names, digits.source.parent, exact=False)
    places = sorted({0, *(min(cut, 40) for cut in cuts), 40})
    parts = [{"image": images[a:b]} for a, b in pairwise(places)]
    found, whole = (
        activations.gathered(session, names, batches, counted=True)
        for batches in (parts, [{"image": images}])
    )
    for name in names:
        assert (found[name].lowest, found[name].highest) == (
            whole[name].lowest,
            whole[name].highest,
        )
        assert np.array_equal(found[name].counts, whole[name].counts), name


def test_entropy_takes_a_single_batch(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    data = save_npz(tmp_path / "few.npz", image=np.load(digits.calibration)["image"][:8])
    made = bench.run(CalibrateParams(method="entropy"), onnx=digits.onnx, calibration=data)
    assert made.facts["batches"] == 1


def test_fewer_samples_than_the_smallest_batch_are_refused(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    data = save_npz(tmp_path / "few.npz", image=np.load(digits.calibration)["image"][:3])
    params = CalibrateParams(profiles=(batch_profile(4, 4, 8),))
    error = bench.fails(InvalidData, params, onnx=digits.onnx, calibration=data)
    assert "3 samples don't fill one batch of 4" in error.detail


def test_a_percentile_clips_what_lies_beyond_it(bench: Bench, digits: Digits) -> None:
    inputs = {"onnx": digits.onnx, "calibration": digits.calibration}
    wide, narrow = (
        scales(bench.run(params, **inputs).outputs["typed"])
        for params in (
            CalibrateParams(method="max"),
            CalibrateParams(method="percentile", percentile=90),
        )
    )
    assert wide.keys() == narrow.keys()
    assert all(narrow[name] < wide[name] for name in wide)


def test_of_several_scales_those_are_best_that_change_the_outputs_least(
    digits: Digits, tmp_path: Path
) -> None:
    image = {"image": np.load(digits.calibration)["image"][:16]}
    source = tmp_path / "model.onnx"
    source.write_bytes(digits.onnx.read_bytes())
    quantized = onnx.load(str(by_modelopt(source, image, tmp_path / "typed.onnx", "int8")))
    tensors = placement.placed(quantized).tensors
    values = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    right = {
        node.input[0]: np.float32(values[node.input[1]])
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in tensors
    }
    wrong = {
        f"times {n}": {name: np.float32(scale * n) for name, scale in right.items()}
        for n in (20.0, 0.05)
    }
    assert trials.best(quantized, wrong | {"right": right}, [image], tmp_path) == "right"
    assert trials.best(quantized, {"one": wrong["times 20.0"]}, [image], tmp_path) == "one"


def test_a_quantised_graph_without_its_pairs_is_the_graph_before(
    digits: Digits, tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(digits.onnx.read_bytes())
    data = {"image": np.load(digits.calibration)["image"][:8]}
    quantized = onnx.load(str(by_modelopt(source, data, tmp_path / "typed.onnx", "int8")))
    plain = placement.without_pairs(quantized)
    assert walk.is_quantized(quantized)
    assert not walk.is_quantized(plain)
    before, rounded, after = (
        next(iter(cpu.OrtModel(model.SerializeToString()).run(data).values()))
        for model in (onnx.load(str(source)), quantized, plain)
    )
    assert np.array_equal(after, before)
    assert not np.array_equal(rounded, before)


def test_infinite_values_leave_the_range_of_the_others(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {
        "w": np.eye(32, dtype=np.float32) * 3e38,
        "v": np.eye(32, dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="b"),
    ]
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 32), weights=weights)
    x = np.full((16, 32), 0.5, np.float32)
    x[3, 3] = 4
    made = bench.run(CalibrateParams(), onnx=source, calibration=save_npz(tmp_path / "x.npz", x=x))
    assert scales(made.outputs["typed"])["a"] == pytest.approx(1.5e38 / 127, rel=0.01)
    assert "1 values of a are infinite or NaN" in capsys.readouterr().out


def test_a_scale_is_computed_as_modelopt_does() -> None:
    assert placement.scale_of(0.0, Precision.INT8) == 1
    assert placement.scale_of(3.0, Precision.INT8) == np.float32(6.0 / 254)
    assert placement.scale_of(3.0, Precision.FP8) == np.float32(6.0 / 254) * 448.0 / 127.0


def test_a_gpu_runs_the_passes_where_onnx_runtime_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert cpu.fastest_providers() == [
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "CPUExecutionProvider",
    ]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both[1:])
    assert cpu.fastest_providers() == ["CPUExecutionProvider"]


def test_samples_are_held_out_in_batches_of_their_own() -> None:
    samples = {"x": np.arange(12, dtype=np.float32)[:, None]}
    batch = Batch(axes={"x": 0}, min=1, opt=4, max=4, is_dynamic=True)
    marks = activations.held_out(12, 1)
    parts = [
        [
            int(v)
            for made in activations.batches_of(samples, batch, 4, which)
            for v in made["x"][:, 0]
        ]
        for which in (~marks, marks)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(12))
    assert len(parts[1]) == 3


def test_a_graph_that_quantises_its_input_alone_is_calibrated(tmp_path):
    weights = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    samples = np.random.default_rng(1).uniform(-2, 2, (64, 16)).astype(np.float32)
    samples[5, 3] = 2.54
    [one], [peaks] = activations.of_parts(
        model,
        ["x"],
        [[{"x": samples[:32]}, {"x": samples[32:]}]],
        tmp_path,
        batch=Batch(axes={"x": 0}, min=1, opt=8, max=32, is_dynamic=True),
    )
    assert one["x"].most == np.float32(2.54)
    assert 5 in peaks.rows(4)


def test_enough_held_out_samples_are_tried_to_fill_a_large_fixed_batch():
    held = np.tile([False, True], 64)
    assert calibrated._first(held, 1).sum() == 16
    assert calibrated._first(held, 32).sum() == 32
