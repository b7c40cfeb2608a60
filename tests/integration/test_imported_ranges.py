"""The calibrate stage with TensorRT's calibration cache: its ranges, by the names of tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import CalibrationFailed, InvalidData
from farm.stages import BuildParams, CalibrateParams
from tests.stage_bench import CPU, Bench, Digits, rtx
from workers.graphs import walk
from workers.quantize import imported, placement


def scales_of(path: Path) -> dict[str, float]:
    """Activation → its scale, in a Q/DQ graph whose activations all have a scale of their own."""
    graph = onnx.load(str(path)).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    return {
        node.input[0]: float(constants[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and not constants[node.input[1]].ndim
    }


def written(path: Path, scales: Mapping[str, float]) -> Path:
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    path.write_text("\n".join(["TRT-8501-EntropyCalibration2", *lines]) + "\n")
    return path


def test_ranges_of_a_cache_give_the_graph_that_their_calibration_gave(
    bench: Bench, digits: Digits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = {"onnx": digits.onnx}
    by_data = bench.run(CalibrateParams(method="max"), **inputs, calibration=digits.calibration)
    scales = scales_of(by_data.outputs["typed"])
    cache = written(tmp_path / "c", scales | {"(Unnamed Layer* 7) [Constant]_output": 0.5})
    made = bench.run(CalibrateParams(), **inputs, ranges=cache)
    assert made.outputs["typed"].read_bytes() == by_data.outputs["typed"].read_bytes()
    assert made.facts["method"] == "tensorrt-cache"
    assert made.facts["chosen"] == {"tensorrt-cache": len(scales)}
    assert (made.facts["samples"], made.facts["without_range"]) == (0, [])
    assert made.facts["remainder_by"] == "random"
    out = capfd.readouterr().out
    assert f"{len(scales)} ranges come from the calibration cache" in out
    assert "1 of the cache's tensors aren't quantised here" in out


def test_ranges_are_taken_to_the_bit_and_evaluation_data_run_the_graph(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    scales = {name: 0.01 * (n + 1) for n, name in enumerate(scales_of(digits.int8))}
    made = bench.run(
        CalibrateParams(),
        onnx=digits.onnx,
        ranges=written(tmp_path / "c", scales),
        evaluation=digits.evaluation,
    )
    assert scales_of(made.outputs["typed"]) == {n: float(np.float32(s)) for n, s in scales.items()}
    assert made.facts["remainder_by"] == "evaluation"


def test_a_tensor_without_a_range_stays_in_float_with_its_weights(
    bench: Bench, digits: Digits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scales = scales_of(digits.int8)
    graph = onnx.load(str(digits.int8)).graph
    dequantized = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    quantized = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    second = [node for node in graph.node if node.op_type == "Conv"][1]
    absent = quantized[dequantized[second.input[0]]]
    del scales[absent]
    made = bench.run(CalibrateParams(), onnx=digits.onnx, ranges=written(tmp_path / "c", scales))
    assert made.facts["without_range"] == [absent]
    assert f"1 tensors have no range there, and what takes them computes in floats: {absent!r}" in (
        capfd.readouterr().out
    )
    typed = onnx.load(str(made.outputs["typed"]))
    [conv] = [node for node in typed.graph.node if node.name == second.name]
    assert conv.input[0] == absent
    weights = {one.name: one for one in typed.graph.initializer}
    assert weights[conv.input[1]].data_type == TensorProto.FLOAT
    assert (
        walk.qdq_pairs(typed)
        < made.facts["qdq_pairs"] + 1
        < walk.qdq_pairs(onnx.load(str(digits.int8)))
    )
    engine = bench.run(
        BuildParams(target=CPU, compute_capability="cpu", precision="int8"),
        typed=made.outputs["typed"],
    )
    types = engine.facts["compute"]["types"]
    # The convolution before can't give integers, which a CPU's needs.
    assert (types["int8"]["layers"], types["fp32"]["layers"]) == (2, 3)
    plan = bench.run(rtx("sm_89", "int8"), typed=made.outputs["typed_half"])
    assert plan.facts["compute"]["types"]["int8"]["layers"] == 3


def test_a_cache_of_another_model_is_refused_with_the_names_of_both(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    cache = written(tmp_path / "c", {"conv1": 0.5, "prob": 0.1})
    error = bench.fails(CalibrationFailed, CalibrateParams(), onnx=digits.onnx, ranges=cache)
    assert "it names 'conv1', 'prob'; the model has 'image'" in error.detail
    (tmp_path / "d").write_text("TRT-8501-EntropyCalibration2\nx: y\n")
    error = bench.fails(InvalidData, CalibrateParams(), onnx=digits.onnx, ranges=tmp_path / "d")
    assert "line 2 isn't a tensor's name and its scale" in error.detail


def quantized_chain() -> onnx.ModelProto:
    """x → Flatten → f → Gemm, and f joined with its own Relu; f, r and the Concat share a scale."""
    nodes, tensors = [], {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 4), np.float32)}

    def pair(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
        return f"{name}_d"

    nodes.append(helper.make_node("Flatten", ["x"], ["f"]))
    nodes.append(helper.make_node("Relu", [pair("f")], ["r"]))
    nodes.append(helper.make_node("Concat", ["f_d", pair("r")], ["c"], axis=1))
    nodes.append(helper.make_node("Identity", [pair("c")], ["y"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT, ["n", 2, 2])],
        [value("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_a_range_holds_for_the_same_values_in_another_shape_and_for_those_that_share_a_scale() -> (
    None
):
    model = quantized_chain()
    assert len(placement.placed(model).groups) == 1
    # Of x, which f only reshapes; y has the values of c.
    made = imported.scales(model, {"x": 0.25, "y": 0.5})
    assert (made.given, list(made.absent)) == (1, [])
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    given = {
        n.input[0]: constants[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear"
    }
    assert given == {"f": 0.5, "r": 0.5, "c": 0.5}


def test_a_range_of_nothing_is_that_of_zeros() -> None:
    model = quantized_chain()
    imported.scales(model, {"f": 0.0})
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert constants[placement.scale_name("f")] == 1
