"""INT8 graphs for CPUs: the same values, in the form that ONNX Runtime's integer kernels take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.backends.ort import cpu
from workers.quantize.cpu_integers import integer_graph
from workers.quantize.integer_products import LARGEST_WEIGHT
from workers.quantize.saturation import exact_graph

SCALES = {"x": 0.03, "r": 0.05}
CHANNELS = 4


def residual_block() -> onnx.ModelProto:
    """Q/DQ as for GPUs: x → conv → + x → Relu → conv, [n,4,6,6], only what enters a conv quantised."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(np.float32(scale), f"{name}_scale")
        for name, scale in SCALES.items()
    ]
    tensors.append(numpy_helper.from_array(np.int8(0), "zero"))
    nodes = []
    for n in (1, 2):
        weights = rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
        scale = rng.uniform(0.001, 0.004, CHANNELS).astype(np.float32)
        tensors += [
            numpy_helper.from_array(weights, f"w{n}"),
            numpy_helper.from_array(scale, f"w{n}_scale"),
            numpy_helper.from_array(np.zeros(CHANNELS, np.int8), f"w{n}_zero"),
            numpy_helper.from_array(rng.standard_normal(CHANNELS).astype(np.float32), f"b{n}"),
        ]
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"w{n}", f"w{n}_scale", f"w{n}_zero"], [f"w{n}_f"], axis=0
            )
        )

    def pair(name: str) -> list[onnx.NodeProto]:
        shared = [f"{name}_scale", "zero"]
        return [
            helper.make_node("QuantizeLinear", [name, *shared], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", *shared], [f"{name}_dq"]),
        ]

    nodes += [
        *pair("x"),
        helper.make_node("Conv", ["x_dq", "w1_f", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "x_dq"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        *pair("r"),
        helper.make_node("Conv", ["r_dq", "w2_f", "b2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    shape = ["n", CHANNELS, 6, 6]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, *outputs: str) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(list(outputs) or None, {"x": INPUT})


INPUT = np.random.default_rng(1).standard_normal((8, CHANNELS, 6, 6)).astype(np.float32)
LARGEST = 6.0


def rewritten() -> tuple[onnx.ModelProto, list[str]]:
    asked = []

    def ranges(names):
        asked.extend(names)
        return dict.fromkeys(names, LARGEST)

    made = integer_graph(residual_block(), ranges)
    onnx.checker.check_model(made, full_check=True)
    return made, asked


def test_only_a_convolution_that_feeds_something_in_floats_has_its_range_measured():
    assert rewritten()[1] == ["c"]


def test_the_values_stay_but_for_the_rounding_that_came_with_the_new_pair():
    [expected], [actual] = run(residual_block()), run(rewritten()[0])
    assert np.corrcoef(expected.ravel(), actual.ravel())[0, 1] > 0.999


def test_a_signed_activation_is_shifted_and_one_after_a_relu_is_not():
    graph = rewritten()[0].graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros, scales = {}, {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scales[node.input[0]], zeros[node.input[0]] = (tensors[n] for n in node.input[1:])
    assert {name: int(zero) for name, zero in zeros.items()} == {"x": 128, "c": 128, "r": 0}
    assert {zero.dtype for zero in zeros.values()} == {np.dtype(np.uint8)}
    assert scales["x"] == np.float32(SCALES["x"])
    assert scales["c"] == pytest.approx(LARGEST / 127)
    assert scales["r"] * 255 == pytest.approx(SCALES["r"] * 127)


def test_every_convolution_of_the_engine_computes_in_integers(tmp_path):
    typed, engine = tmp_path / "typed.onnx", tmp_path / "engine.onnx"
    onnx.save(rewritten()[0], str(typed))
    cpu.build_engine(typed, engine)
    kinds = [node.op_type for node in onnx.load(str(engine)).graph.node]
    # The last gives floats, the model's output, and so stays as it is.
    assert kinds.count("QLinearConv") == 1
    assert "QLinearAdd" in kinds


def test_what_is_left_as_it_was_is_not_doubled():
    graph = rewritten()[0].graph
    names = [tensor.name for tensor in graph.initializer]
    used = {name for node in graph.node for name in node.input}
    assert len(names) == len(set(names))
    assert set(names) <= used


def test_what_only_a_subgraph_takes_is_kept():
    model = residual_block()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "inner"))
    value = helper.make_tensor_value_info("i", TensorProto.FLOAT, [])
    branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["i"])], "b", [], [value])
    graph.node.append(
        helper.make_node("If", ["always"], ["z"], then_branch=branch, else_branch=branch)
    )
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    made = integer_graph(model, lambda names: dict.fromkeys(names, LARGEST))
    assert run(made, "z") == [1.0]


def product(operator: str, *after: str, shape: tuple[str | int, ...]) -> onnx.ModelProto:
    """Q/DQ as for GPUs: x · w, then its bias as an Add or in a Gemm, then what comes ``after``."""
    rng = np.random.default_rng(0)
    tensors = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "w": rng.integers(-64, 65, (16, 8)).astype(np.int8),
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "b": rng.standard_normal(8).astype(np.float32),
    }
    names = ["x", *(f"t{n}" for n in range(len(after))), "y"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["f"], axis=1),
        helper.make_node(operator, ["d", "f", *(["b"] if operator == "Gemm" else [])], [names[1]]),
    ]
    for n, kind in enumerate(after, 1):
        nodes.append(
            helper.make_node(kind, [names[n], *(["b"] if kind == "Add" else [])], [names[n + 1]])
        )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "product",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, [*shape[:-1], 8])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


AFTER = (
    (),
    ("Relu",),
    ("Relu", "Neg"),
    ("Clip", "Neg"),
    ("Add",),
    ("Add", "Relu"),
    ("Add", "Relu", "Neg"),
    ("Add", "Sigmoid"),
)
MATRIX, STACK = ("n", 16), ("n", 5, 16)


@pytest.mark.parametrize(
    ("operator", "after", "shape"),
    [
        *(("MatMul", after, shape) for after in AFTER for shape in (MATRIX, STACK)),
        *(("Gemm", after, MATRIX) for after in AFTER if "Add" not in after),
    ],
)
def test_every_matrix_product_computes_in_integers_and_its_result_isnt_rounded(
    operator: str, after: tuple[str, ...], shape: tuple[str | int, ...], tmp_path: Path
) -> None:
    model = product(operator, *after, shape=shape)
    made = exact_graph(integer_graph(model, pytest.fail))
    typed, engine = tmp_path / "typed.onnx", tmp_path / "engine.onnx"
    onnx.save(made, str(typed))
    cpu.build_engine(typed, engine)
    kinds = {node.op_type for node in onnx.load(str(engine)).graph.node}
    assert kinds & {"QGemm", "MatMulIntegerToFloat"}
    assert not kinds & {"Gemm", "FusedGemm", "MatMul"}
    x = np.random.default_rng(1).standard_normal((3, 5, 16)[3 - len(shape) :]).astype(np.float32)
    [expected] = cpu.OrtModel(model.SerializeToString(), optimisation="none").run({"x": x}).values()
    [actual] = cpu.OrtModel(engine, is_engine=True).run({"x": x}).values()
    # Only the bias is rounded, to the steps of the sum.
    assert np.abs(actual - expected).max() < 0.02 * 0.01


@pytest.mark.parametrize("takers", ["a body", "two"])
def test_a_product_is_computed_in_integers_whoever_takes_its_result(
    takers: str, tmp_path: Path
) -> None:
    model = product("MatMul", "Relu", shape=MATRIX)
    graph = model.graph
    graph.node[-1].output[0] = "r"
    if takers == "two":
        graph.node.append(helper.make_node("Neg", ["r"], ["n"]))
        graph.node.append(helper.make_node("Sub", ["r", "n"], ["y"]))
    else:
        graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
        value = helper.make_tensor_value_info("i", TensorProto.FLOAT, ["n", 8])
        branch = helper.make_graph(
            [helper.make_node("Add", ["r", "r"], ["i"])], "branch", [], [value]
        )
        options = {"then_branch": branch, "else_branch": branch}
        graph.node.append(helper.make_node("If", ["always"], ["y"], **options))
    typed, engine = tmp_path / "typed.onnx", tmp_path / "engine.onnx"
    onnx.save(exact_graph(integer_graph(model, pytest.fail)), str(typed))
    cpu.build_engine(typed, engine)
    kinds = {node.op_type for node in onnx.load(str(engine)).graph.node}
    assert kinds & {"QGemm", "MatMulIntegerToFloat"}
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    [expected] = cpu.OrtModel(model.SerializeToString(), optimisation="none").run({"x": x}).values()
    [actual] = cpu.OrtModel(engine, is_engine=True).run({"x": x}).values()
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_weights_are_rounded_to_seven_bits_with_which_no_kernel_saturates() -> None:
    model = residual_block()
    given = tensors_of(model)
    made = integer_graph(model, lambda names: dict.fromkeys(names, LARGEST))
    found = tensors_of(made)
    for n in (1, 2):
        [maker] = [node for node in made.graph.node if node.output[0] == f"w{n}_f"]
        weights, scale = (found[name] for name in maker.input[:2])
        assert weights.dtype == np.int8
        assert 60 < np.abs(weights.astype(int)).max() <= LARGEST_WEIGHT
        scales = scale.reshape(-1, 1, 1, 1)
        before = given[f"w{n}"] * given[f"w{n}_scale"].reshape(-1, 1, 1, 1)
        assert (np.abs(weights * scales - before) <= 0.501 * scales).all()
    # Those that a model was trained with stay.
    kept = tensors_of(
        integer_graph(model, lambda names: dict.fromkeys(names, 0.0), keep_levels=True)
    )
    assert (kept["w1"] == given["w1"]).all()


def tensors_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_what_is_never_negative_has_all_levels_also_after_a_pooling(tmp_path: Path) -> None:
    """x → conv → Relu → max pooling → conv, all with one scale: nothing between is in floats."""
    model = residual_block()
    graph = model.graph
    nodes = {node.output[0]: node for node in graph.node}
    pooled = [
        helper.make_node("QuantizeLinear", ["r0", "r_scale", "zero"], ["r0_q"]),
        helper.make_node("DequantizeLinear", ["r0_q", "r_scale", "zero"], ["r0_dq"]),
        helper.make_node("MaxPool", ["r0_dq"], ["r"], kernel_shape=[1, 1]),
    ]
    nodes["r"].input[0], nodes["r"].output[0] = "c", "r0"
    kept = [node for node in graph.node if node.output[0] != "s"]
    at = kept.index(nodes["r"]) + 1
    kept[at:at] = pooled
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copied)
    typed, engine = tmp_path / "typed.onnx", tmp_path / "engine.onnx"
    onnx.save(exact_graph(integer_graph(model, pytest.fail)), str(typed))
    cpu.build_engine(typed, engine)
    makers = {n.output[0]: n for n in onnx.load(str(engine)).graph.node}
    [pooling] = [n for n in makers.values() if n.op_type == "MaxPool"]
    assert makers[pooling.input[0]].op_type == "QLinearConv"


CLIPS = {
    "Relu": [helper.make_node("Relu", ["p"], ["c"])],
    "Clip": [helper.make_node("Clip", ["p", "least", "most"], ["c"])],
    "Clip above": [helper.make_node("Clip", ["p", "", "most"], ["c"])],
    "Add, Relu": [
        helper.make_node("Add", ["p", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["c"]),
    ],
}


@pytest.mark.parametrize("zero", [np.int8(0), np.int8(-20), np.uint8(0), np.uint8(100)])
@pytest.mark.parametrize(
    ("operator", "clip"),
    [
        *(("Conv", clip) for clip in CLIPS if "Add" not in clip),
        *(("MatMul", clip) for clip in CLIPS),
        *(("Gemm", clip) for clip in CLIPS if "Add" not in clip),
    ],
)
def test_a_trained_quantisation_keeps_its_levels_and_is_computed_in_integers(
    operator: str, clip: str, zero: np.generic, tmp_path: Path
) -> None:
    """x → product → clip → Q/DQ → the same product: what the graph says, to the last step."""
    rng = np.random.default_rng(0)
    is_conv = operator == "Conv"
    shape = (3, 8, 5, 5) if is_conv else (3, 8)
    tensors = {
        "scale": np.float32(2.0**-6),
        "zero": np.int8(0),
        "step": np.float32(2.0**-4),
        "middle": zero,
        "last": type(zero)(3),
        "w": rng.integers(-127, 128, (8, 8, 1, 1) if is_conv else (8, 8)).astype(np.int8),
        "w_scale": np.full(8, 2.0**-6, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "b": rng.integers(-1024, 1025, 8).astype(np.float32) * np.float32(2.0**-10),
        "least": np.float32(-0.5),
        "most": np.float32(3),
    }
    bias = [] if operator == "MatMul" else ["b"]
    axis = 0 if is_conv else 1
    make = helper.make_node
    nodes = [
        make("DequantizeLinear", ["w", "w_scale", "w_zero"], ["f"], axis=axis),
        make("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        make("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        make(operator, ["xd", "f", *bias], ["p"]),
        *CLIPS[clip],
        make("QuantizeLinear", ["c", "step", "middle"], ["cq"]),
        make("DequantizeLinear", ["cq", "step", "middle"], ["cd"]),
        make(operator, ["cd", "f", *bias], ["r"]),
        make("QuantizeLinear", ["r", "step", "last"], ["rq"]),
        make("DequantizeLinear", ["rq", "step", "last"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "trained",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 20)]
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=imports, ir_version=10)
    )
    made = integer_graph(model, lambda names: dict.fromkeys(names, 0.0), keep_levels=True)
    typed, engine = tmp_path / "typed.onnx", tmp_path / "engine.onnx"
    onnx.save(exact_graph(made), str(typed))
    cpu.build_engine(typed, engine)
    kinds = [node.op_type for node in onnx.load(str(engine)).graph.node]
    assert not {"Conv", "FusedConv", "MatMul", "Gemm", "FusedGemm"} & set(kinds), kinds
    x = rng.standard_normal(shape).astype(np.float32)
    expected = cpu.OrtModel(model.SerializeToString(), optimisation="none").run({"x": x})["y"]
    actual = cpu.OrtModel(engine, is_engine=True).run({"x": x})["y"]
    # Powers of two: no sum is rounded, and each value to the same level.
    np.testing.assert_array_equal(actual, expected)
