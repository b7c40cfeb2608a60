"""The calibrate stage: one calibration for GPUs and CPUs, from data that fit the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import CalibrationFailed, CastFailed, InvalidData
from farm.stages import BuildParams, CalibrateParams, CastParams, MeasureParams
from tests.graphs import small_graph
from tests.stage_bench import CPU, IMAGE, Bench, Digits, batch_profile, rtx, save_npz
from workers.backends.ort.cpu import OrtModel
from workers.graphs import casting, interface, walk
from workers.graphs.shapes import outline_of
from workers.quantize import modelopt
from workers.quantize.stored_weights import fold_quantized_weights


def test_what_modelopt_stumbles_over_is_told_as_what_to_do(
    bench: Bench, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise RuntimeError("no shape\nof node n7")

    monkeypatch.setattr(casting, "typed", stumble)
    error = bench.fails(CastFailed, CastParams(precision="bf16"), onnx=digits.onnx)
    assert "this graph can't be cast to bf16: no shape of node n7" in error.detail
    monkeypatch.setattr(modelopt, "quantize", stumble)
    inputs = {"onnx": digits.onnx, "calibration": digits.calibration}
    error = bench.fails(CalibrationFailed, CalibrateParams(), **inputs)
    assert "can't calibrate this graph for int8: no shape of node n7" in error.detail


def test_one_calibration_serves_gpus_and_cpus(digits: Digits) -> None:
    facts = digits.calibrated.facts
    assert (facts["samples"], facts["batch_size"], facts["batches"]) == (64, 8, 8)
    assert facts["method"] == "auto"
    assert sum(facts["chosen"].values()) > 2
    assert facts["qdq_pairs"] > 5
    assert facts["remainder"] == "fp16"
    fp32, fp16 = (onnx.load(str(path)) for path in (digits.int8, digits.int8_fp16))
    assert {w.data_type for w in fp32.graph.initializer}.isdisjoint({TensorProto.FLOAT16})
    assert TensorProto.FLOAT16 in {w.data_type for w in fp16.graph.initializer}
    assert (
        interface.input_specs(fp16)[0].dtype == interface.output_specs(fp16)[0].dtype == "float32"
    )


def test_gpus_and_cpus_have_the_same_scales_of_weights(digits: Digits) -> None:
    def weights(path: Path) -> list[float]:
        graph = onnx.load(str(path)).graph
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        dequantized = (node for node in graph.node if node.op_type == "DequantizeLinear")
        scales = (values[n.input[1]] for n in dequantized if n.input[0] in values)
        return sorted(float(scale.max()) for scale in scales)

    assert weights(digits.int8) == pytest.approx(weights(digits.int8_fp16), rel=2e-3)
    assert len(weights(digits.int8)) == 4


def test_a_cpu_engine_multiplies_integers(bench: Bench, digits: Digits) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="int8")
    result = bench.run(params, **digits.for_cpu)
    engine = onnx.load(str(result.outputs["engine"]))
    kinds = [node.op_type for node in engine.graph.node]
    assert (kinds.count("QLinearConv"), kinds.count("QGemm")) == (3, 1), kinds
    # ModelOpt leaves a head of ten classes alone.
    assert result.facts["compute"]["types"]["int8"] == {"layers": 4, "share": 0.999}
    assert result.facts["compute"]["types"]["fp32"]["layers"] == 1


def test_integer_products_whose_results_leave_fp16_give_fp32(bench: Bench, tmp_path: Path) -> None:
    weights = {f"w{n}": np.full((32, 32), 1.0 + n, np.float32) for n in range(3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="third"),
    ]
    source = small_graph(tmp_path / "large.onnx", *nodes, shape=("n", 32), weights=weights)
    data = save_npz(
        tmp_path / "x.npz", x=np.linspace(1, 9, 32 * 32, dtype=np.float32).reshape(32, 32)
    )
    made = bench.run(CalibrateParams(method="max"), onnx=source, calibration=data)
    assert made.facts["remainder"] == "fp32"
    params = MeasureParams(precision="int8", format="onnx")
    for role in ("typed_half", "typed_fp16"):
        wide = {"source": source, "typed": made.outputs[role], "calibration": data}
        assert bench.run(params, **wide).facts["accuracy"]["cosine_min"] > 0.99
    built = bench.run(rtx("sm_80", "int8"), typed=made.outputs["typed_half"]).facts
    assert built["compute"]["types"]["int8"]["layers"] == 3


def test_weights_are_stored_in_their_quantised_type(digits: Digits) -> None:
    for path in (digits.int8, digits.int8_fp16):
        graph = onnx.load(str(path)).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds = {node.input[0]: node.op_type for node in graph.node}
        assert not [name for name in types if kinds.get(name) == "QuantizeLinear"]
        stored = [name for name in types if kinds.get(name) == "DequantizeLinear"]
        assert [types[name] for name in stored] == [TensorProto.INT8] * 4


@pytest.mark.parametrize("type_", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_stored_weights_are_those_that_the_graph_would_make(type_: int, tmp_path: Path) -> None:
    weights = {
        "w": np.random.default_rng(0).normal(0, 1, (4, 8)).astype(np.float32),
        "scale": np.geomspace(1e-4, 1, 8, dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = onnx.load(str(small_graph(tmp_path / "m.onnx", *nodes, weights=weights)))
    model.graph.initializer.append(helper.make_tensor("zero", type_, [8], [0] * 8))
    x = {"x": np.eye(4, dtype=np.float32)}
    expected = OrtModel(model.SerializeToString()).run(x)["y"]
    fold_quantized_weights(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]
    assert np.array_equal(OrtModel(model.SerializeToString()).run(x)["y"], expected)


def test_types_and_shapes_follow_from_a_graph_without_its_weights(digits: Digits) -> None:
    def inferred(model: onnx.ModelProto) -> dict[str, bytes]:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        return {value.name: value.SerializeToString() for value in graph.value_info}

    for path in (digits.onnx, digits.int8, digits.int8_fp16):
        model = onnx.load(str(path))
        outline = outline_of(model)
        assert outline.ByteSize() < model.ByteSize() / 4
        whole, light = inferred(model), inferred(outline)
        assert whole == light


def test_calibration_is_reproducible(bench: Bench, digits: Digits) -> None:
    again = bench.run(CalibrateParams(), onnx=digits.onnx, calibration=digits.calibration)
    assert again.outputs["typed"].read_bytes() == digits.int8.read_bytes()
    assert again.outputs["typed_fp16"].read_bytes() == digits.int8_fp16.read_bytes()
    assert any(phase == "calibrate" and share == 1 for phase, share in bench.phases)


def test_calibration_depends_on_the_data(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    other = save_npz(tmp_path / "o.npz", image=np.load(digits.calibration)["image"] * np.float32(3))
    result = bench.run(CalibrateParams(method="max"), onnx=digits.onnx, calibration=other)
    assert result.outputs["typed"].read_bytes() != digits.int8.read_bytes()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"img": IMAGE}, "'img'"),
        ({"image": IMAGE, "mask": IMAGE}, "'mask'"),
        ({"image": IMAGE[:, 0]}, "shape [32, 8, 8]"),
        ({"image": IMAGE[:, :, :7]}, "axis 2"),
        ({"image": IMAGE.astype(np.float64)}, "float64"),
        ({"image": (IMAGE * 255).astype(np.uint8)}, "uint8"),
        ({"image": np.where(IMAGE > 0.5, np.float32(np.nan), IMAGE)}, "NaN"),
        ({"image": IMAGE[:0]}, "no samples"),
        ({"image": np.array([{}], dtype=object)}, "can't be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], told: str, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    data = save_npz(tmp_path / "data.npz", **arrays)
    error = bench.fails(InvalidData, CalibrateParams(), onnx=digits.onnx, calibration=data)
    assert told in error.detail


@pytest.mark.parametrize(
    "content", [b"", b"not data", b"PK\x03\x04truncated", b"\x08" + b"\0" * 7 + b"{bad"]
)
def test_data_files_that_are_neither_are_refused(
    content: bytes, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.write_bytes(content)
    bench.fails(InvalidData, CalibrateParams(), onnx=digits.onnx, calibration=data)


def test_safetensors_data_calibrate_like_npz(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    data = tmp_path / "data.safetensors"
    save_file({"image": np.load(digits.calibration)["image"]}, data)
    result = bench.run(CalibrateParams(), onnx=digits.onnx, calibration=data)
    assert result.outputs["typed"].read_bytes() == digits.int8.read_bytes()


def test_a_quantised_graph_is_not_quantised_again(bench: Bench, digits: Digits) -> None:
    inputs = {"onnx": digits.int8, "calibration": digits.calibration}
    again = bench.run(CalibrateParams(), **inputs).outputs["typed"]
    before, after = (onnx.load(str(path)) for path in (digits.int8, again))
    assert walk.qdq_pairs(after) == walk.qdq_pairs(before) > 0


def test_a_graph_with_nothing_to_quantise_is_refused(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "relu.onnx")
    data = save_npz(tmp_path / "x.npz", x=np.ones((32, 4), np.float32))
    error = bench.fails(CalibrationFailed, CalibrateParams(), onnx=source, calibration=data)
    assert error.detail.endswith("can be int8: it has none")


def test_the_batch_size_stays_within_the_profile(bench: Bench, digits: Digits) -> None:
    params = CalibrateParams(profiles=(batch_profile(1, 2, 4),))
    facts = bench.run(params, onnx=digits.onnx, calibration=digits.calibration).facts
    assert facts["batch_size"] == 4
