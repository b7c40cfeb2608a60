"""In which types a graph multiplies: counted by hand on small graphs, and on a known one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import PrecisionMissed
from farm.specs.precision import Precision
from workers.graphs import interface
from workers.graphs.compute import compute_of
from workers.inputs.profiles import resolve_profiles, shapes_at
from workers.report import layers

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def graph(nodes, tensors, *, x=("n", 4), y=("n", 8), kind=TensorProto.FLOAT) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, y)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weights(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("node", "weight", "x", "y", "macs"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), weights(4, 8), (3, 4), (3, 8), 3 * 4 * 8),
        (
            helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
            weights(8, 4),
            (3, 4),
            (3, 8),
            3 * 4 * 8,
        ),
        (
            helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
            weights(4, 8),
            (4, 3),
            (3, 8),
            3 * 4 * 8,
        ),
        (
            helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1]),
            weights(8, 2, 3, 3),
            (2, 4, 5, 5),
            (2, 8, 5, 5),
            2 * 8 * 25 * 2 * 9,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            weights(4, 8, 2, 2),
            (1, 4, 5, 5),
            (1, 8, 10, 10),
            4 * 25 * 8 * 4,
        ),
    ],
)
def test_multiplications_are_counted(node, weight, x, y, macs):
    found = compute_of(graph([node], {"w": weight}, x=x, y=y), {"x": x})
    assert [(p.type, p.macs) for p in found.products] == [("fp32", macs)]


def test_a_dynamic_axis_counts_at_the_shapes_that_are_given():
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights(4, 8)})
    assert compute_of(model, {"x": (16, 4)}).as_facts() == {
        "macs": 16 * 32,
        "types": {"fp32": {"layers": 1, "share": 1.0}},
    }


def test_resnet_50_has_its_four_billion_multiplications():
    model = onnx.load(str(LIGHT / "light_resnet50.onnx"))
    shapes = shapes_at(resolve_profiles(interface.input_specs(model), ())[0], "opt")
    facts = compute_of(model, shapes).as_facts()
    assert facts["macs"] == 4_089_184_256
    assert facts["types"] == {"fp32": {"layers": 54, "share": 1.0}}


def mixed(quantized: bool) -> onnx.ModelProto:
    """x·w in int8, if its input is quantised too, through a reshape; then ·v in fp32, a quarter of it."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["r"]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
        *(pair if quantized else []),
        helper.make_node("MatMul", ["r" if quantized else "x", "wf"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    tensors = {
        "w": weights(4, 24, dtype=np.int8),
        "v": weights(24, 8)[:, :],
        "s": np.float32(0.1),
        "z": np.int8(0),
        "shape": np.array([-1, 4]),
    }
    return graph(nodes, tensors, y=("n", 8))


def test_a_product_of_dequantised_tensors_computes_in_the_quantised_type():
    found = compute_of(mixed(quantized=True), {"x": (2, 4)})
    assert [p.type for p in found.products] == ["int8", "fp32"]
    assert [p.not_quantized for p in found.products] == [(), ("h", "v")]
    assert found.as_facts()["types"]["int8"]["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_an_int8_engine_without_int8_is_refused_with_the_reason():
    found = compute_of(mixed(quantized=False), {"x": (2, 4)})
    with pytest.raises(PrecisionMissed, match=r"MatMul 'first' computes in fp32, since x isn't"):
        layers.check_precision(Precision.INT8, found)
    layers.check_precision(Precision.INT8, compute_of(mixed(quantized=True), {"x": (2, 4)}))
    layers.check_precision(Precision.FP32, found)
    with pytest.raises(PrecisionMissed, match="computes in fp32"):
        layers.check_precision(Precision.FP16, found)


def test_a_shape_that_is_not_known_is_no_zero():
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    facts = compute_of(graph(nodes, {"w": weights(2, 8)}), {"x": (2, 4)}).as_facts()
    assert facts == {"macs": None, "types": {"fp32": {"layers": 1, "share": None}}}
