"""What an engine of ONNX Runtime computes in, read from its own graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.backends.ort import cpu
from workers.graphs.compute import Compute, compute_of
from workers.quantize.saturation import exact_graph
from workers.report.optimised import compute_of_engine

node = helper.make_node
value = helper.make_tensor_value_info
NOTHING = Compute(products=())


def model_of(nodes, tensors, inputs, outputs, opset=20) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, kind, shape) for name, kind, shape in inputs],
        [value(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def engine_of(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    typed, engine = folder / "typed.onnx", folder / "engine.onnx"
    onnx.save(exact_graph(model), str(typed))
    cpu.build_engine(typed, engine)
    return onnx.load(str(engine))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def quantized(name: str, weight: np.ndarray, axis: int) -> tuple[dict, list[onnx.NodeProto]]:
    count = weight.shape[axis]
    tensors = {
        name: np.rint(weight * 20).clip(-127, 127).astype(np.int8),
        f"{name}_s": np.full(count, 0.05, np.float32),
        f"{name}_z": np.zeros(count, np.int8),
    }
    names = [name, f"{name}_s", f"{name}_z"]
    return tensors, [node("DequantizeLinear", names, [f"{name}_f"], axis=axis)]


def pair(name: str) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
        node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]),
    ]


def deconvolution() -> onnx.ModelProto:
    """x → Conv → ConvTranspose → Conv → y, all between Q and DQ, the last one's result in floats."""
    tensors = {"scale": np.float32(0.05), "zero": np.int8(0)}
    nodes = [*pair("x")]
    for name, weight, axis in (
        ("w1", floats(16, 8, 3, 3), 0),
        ("w2", floats(16, 16, 2, 2), 1),
        ("w3", floats(4, 16, 1, 1), 0),
    ):
        made, dequantize = quantized(name, weight, axis)
        tensors |= made
        nodes += dequantize
    nodes += [
        node("Conv", ["x_d", "w1_f"], ["a"], pads=[1, 1, 1, 1], name="first"),
        *pair("a"),
        node("ConvTranspose", ["a_d", "w2_f"], ["b"], strides=[2, 2], name="wider"),
        *pair("b"),
        node("Conv", ["b_d", "w3_f"], ["y"], name="last"),
    ]
    x = ("x", TensorProto.FLOAT, ["n", 8, 6, 6])
    return model_of(nodes, tensors, [x], [("y", ["n", 4, 12, 12])])


def test_what_the_runtime_leaves_in_floats_isnt_called_int8(tmp_path: Path) -> None:
    model, shapes = deconvolution(), {"x": (2, 8, 6, 6)}
    assert compute_of(model, shapes).as_facts()["types"]["int8"]["share"] == 1.0
    found = compute_of_engine(engine_of(model, tmp_path), shapes, compute_of(model, shapes))
    first, wider, last = 2 * 36 * 16 * 72, 2 * 36 * 16 * 64, 2 * 144 * 4 * 16
    assert [(p.op_type, p.type, p.macs) for p in found.products] == [
        ("QLinearConv", "int8", first),
        ("ConvTranspose", "fp32", wider),
        ("Conv", "fp32", last),
    ]
    assert [p.typed for p in found.products] == [None, "int8", "int8"]
    assert found.as_facts() == {
        "macs": first + wider + last,
        "types": {
            "int8": {"layers": 1, "share": round(first / (first + wider + last), 4)},
            "fp32": {"layers": 2, "share": round((wider + last) / (first + wider + last), 4)},
        },
    }


@pytest.mark.parametrize(
    ("operator", "rounded", "kernel"),
    [
        ("MatMul", False, "MatMulIntegerToFloat"),
        ("MatMul", True, "QLinearMatMul"),
        ("Gemm", False, "QGemm"),
        ("Gemm", True, "QGemm"),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_integer_products_are_counted(
    operator: str, rounded: bool, kernel: str, transposed: bool, tmp_path: Path
) -> None:
    turned = operator == "Gemm" and transposed
    tensors, nodes = quantized("w", floats(8, 16) if turned else floats(16, 8), 0 if turned else 1)
    tensors |= {"scale": np.float32(0.05), "zero": np.int8(0)}
    options = {"transB": 1} if turned else {}
    nodes = [*pair("x"), *nodes, node(operator, ["x_d", "w_f"], ["a"], **options)]
    nodes += [*pair("a"), node("Identity", ["a_d"], ["y"])] if rounded else []
    if not rounded:
        nodes[-1].output[0] = "y"
    x = ("x", TensorProto.FLOAT, ["n", 16])
    engine = engine_of(model_of(nodes, tensors, [x], [("y", ["n", 8])]), tmp_path)
    [found] = compute_of_engine(engine, {"x": (3, 16)}, NOTHING).products
    assert (found.op_type, found.type, found.macs) == (kernel, "int8", 3 * 16 * 8)


def test_integers_made_as_they_come_are_counted(tmp_path: Path) -> None:
    tensors = {"w": np.ones((16, 8), np.int8), "s": np.float32(0.05)}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "xs", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["xs", "s"], ["ss"]),
        node("Mul", ["f", "ss"], ["y"]),
    ]
    x = ("x", TensorProto.FLOAT, ["n", 5, 16])
    engine = engine_of(model_of(nodes, tensors, [x], [("y", ["n", 5, 8])]), tmp_path)
    [found] = compute_of_engine(engine, {"x": (3, 5, 16)}, NOTHING).products
    assert (found.op_type, found.type, found.macs) == ("DynamicQuantizeMatMul", "int8", 1920)


def test_a_transformer_block_has_as_many_multiplications_as_before_its_fusions(
    tmp_path: Path,
) -> None:
    tensors = {
        "scale": np.float32(0.25),
        "heads": np.array([0, 0, 4, 8]),
        "one": np.ones(32, np.float32),
        "half": np.float32(0.5),
        "root": np.float32(2**0.5),
    }
    tensors |= {name: floats(32, 32) for name in ("wq", "wk", "wv", "wo")}
    tensors |= {"w1": floats(32, 64), "w2": floats(64, 32), "b1": floats(64), "back": [0, 0, 32]}
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}1"]),
            node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=order),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["s1"]),
        node("Mul", ["s1", "scale"], ["s2"]),
        node("Softmax", ["s2"], ["s3"], axis=-1),
        node("MatMul", ["s3", "v3"], ["a1"]),
        node("Transpose", ["a1"], ["a2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a2", "back"], ["a3"]),
        node("MatMul", ["a3", "wo"], ["o"]),
        node("Add", ["o", "x"], ["r"]),
        node("LayerNormalization", ["r", "one", "one"], ["n"]),
        node("MatMul", ["n", "w1"], ["f1"]),
        node("Add", ["f1", "b1"], ["f2"]),
        node("Div", ["f2", "root"], ["g1"]),
        node("Erf", ["g1"], ["g2"]),
        node("Add", ["g2", "one_more"], ["g3"]),
        node("Mul", ["f2", "g3"], ["g4"]),
        node("Mul", ["g4", "half"], ["g5"]),
        node("MatMul", ["g5", "w2"], ["y"]),
    ]
    tensors["one_more"] = np.float32(1)
    x = ("x", TensorProto.FLOAT, ["n", "l", 32])
    model = model_of(nodes, tensors, [x], [("y", ["n", "l", 32])])
    engine = engine_of(model, tmp_path)
    kinds = {made.op_type for made in engine.graph.node}
    assert kinds & {"FusedMatMul", "BiasGelu", "SkipLayerNormalization"}, kinds
    shapes = {"x": (2, 5, 32)}
    expected = 2 * 5 * 32 * (4 * 32 + 2 * 64) + 2 * (2 * 4 * 5 * 5 * 8)
    assert compute_of(model, shapes).as_facts()["macs"] == expected
    assert compute_of_engine(engine, shapes, NOTHING).as_facts() == {
        "macs": expected,
        "types": {"fp32": {"layers": 8, "share": 1.0}},
    }


def fused(kind: str, inputs: list[str], shapes: dict[str, tuple[int, ...]], **options):
    """An engine of one operator of ONNX Runtime's own."""
    made = node(kind, inputs, ["y"], domain="com.microsoft", name="fused", **options)
    types = {"W8": TensorProto.UINT8, "X8": TensorProto.UINT8}
    given = [value(n, types.get(n, TensorProto.FLOAT), s) for n, s in shapes.items()]
    graph = helper.make_graph([made], "g", given, [value("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            fused("FusedConv", ["x", "w"], {"x": (2, 4, 5, 5), "w": (8, 4, 3, 3)}),
            {"fp32": 2 * 8 * 9 * 36},
        ),
        (
            fused("FusedMatMul", ["x", "w"], {"x": (2, 4, 3), "w": (2, 5, 4)}, transA=1, transB=1),
            {"fp32": 2 * 3 * 5 * 4},
        ),
        (
            fused("Attention", ["x", "w"], {"x": (2, 5, 32), "w": (32, 96)}, num_heads=4),
            {"fp32": 2 * 5 * 32 * 96 + 2 * (2 * 5 * 5 * 32)},
        ),
        (
            fused("QAttention", ["X8", "W8"], {"X8": (2, 5, 32), "W8": (32, 96)}, num_heads=4),
            {"int8": 2 * 5 * 32 * 96, "fp32": 2 * (2 * 5 * 5 * 32)},
        ),
        (
            fused(
                "MultiHeadAttention",
                ["q", "k", "v"],
                {"q": (2, 5, 32), "k": (2, 7, 32), "v": (2, 7, 16)},
                num_heads=4,
            ),
            {"fp32": 2 * 5 * 7 * 32 + 2 * 5 * 7 * 16},
        ),
        (
            fused("MatMulNBits", ["x", "W8"], {"x": (3, 64), "W8": (8, 2, 32)}, K=64, N=8),
            {"fp32": 3 * 64 * 8},
        ),
        (
            fused(
                "MatMulNBits",
                ["x", "W8"],
                {"x": (3, 64), "W8": (8, 2, 32)},
                K=64,
                N=8,
                accuracy_level=4,
            ),
            {"int8": 3 * 64 * 8},
        ),
    ],
)
def test_operators_of_its_own_are_counted(engine: onnx.ModelProto, expected: dict) -> None:
    found: dict[str, int] = {}
    for product in compute_of_engine(engine, {}, NOTHING).products:
        assert product.macs is not None
        found[product.type] = found.get(product.type, 0) + product.macs
    assert found == expected


def test_an_operator_that_isnt_known_leaves_a_share_unknown() -> None:
    engine = fused("Sampling", ["x"], {"x": (2, 4)})
    engine.graph.node.append(node("MatMul", ["y", "w"], ["z"]))
    engine.graph.input.append(value("w", TensorProto.FLOAT, [4, 8]))
    facts = compute_of_engine(engine, {"x": (2, 4)}, NOTHING).as_facts()
    assert facts["macs"] is None


def test_bodies_of_control_flow_are_counted(tmp_path: Path) -> None:
    """A Gemm in the graph, and a larger one in each branch."""
    tensors = {"scale": np.float32(0.05), "zero": np.int8(0), "v": floats(8, 32)}
    made, nodes = quantized("w", floats(16, 8), 1)
    nodes = [*pair("x"), *nodes, node("MatMul", ["x_d", "w_f"], ["a"], name="outside")]
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("MatMul", ["a", "v"], [f"{name}_y"], name=f"in_{name}")],
            name,
            [],
            [value(f"{name}_y", TensorProto.FLOAT, ["n", 32])],
        )
        for name in ("then", "else")
    }
    nodes.append(node("If", ["flag"], ["y"], **branches))
    inputs = [("x", TensorProto.FLOAT, ["n", 16]), ("flag", TensorProto.BOOL, [])]
    model = model_of(nodes, tensors | made, inputs, [("y", ["n", 32])])
    found = compute_of_engine(engine_of(model, tmp_path), {"x": (3, 16), "flag": ()}, NOTHING)
    assert ("outside", "int8", 3 * 16 * 8) in [(p.name, p.type, p.macs) for p in found.products]
