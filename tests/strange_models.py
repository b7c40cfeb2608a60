"""Legal ONNX models that few people write, each by the name of what is odd about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {}

Make = Callable[[], onnx.ModelProto]


def strange(make: Make) -> Make:
    MODELS[make.__name__] = make
    return make


def value(name: str, type_: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, type_, shape)


def const(name: str, array: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def weights(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def model(
    nodes, inputs, outputs, constants=(), *, opset=20, functions=(), sparse=()
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "strange", inputs, outputs, constants)
    graph.sparse_initializer.extend(sparse)
    domains = {function.domain for function in functions}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


node = helper.make_node
FEATURES = value("x", T.FLOAT, ["b", 8])
RESULT = value("y", T.FLOAT, ["b", 4])
WEIGHT = const("w", weights(8, 4))


def linear(source: str, made: str, weight: str = "w") -> onnx.NodeProto:
    return node("MatMul", [source, weight], [made], name=f"product_{made}")


# Types


def _typed(type_: int, dtype: type) -> onnx.ModelProto:
    weight = const("w", weights(8, 4).astype(dtype))
    return model(
        [linear("x", "y")], [value("x", type_, ["b", 8])], [value("y", type_, ["b", 4])], [weight]
    )


@strange
def fp64() -> onnx.ModelProto:
    return _typed(T.DOUBLE, np.float64)


@strange
def fp16() -> onnx.ModelProto:
    return _typed(T.FLOAT16, np.float16)


@strange
def bf16() -> onnx.ModelProto:
    weight = helper.make_tensor("w", T.BFLOAT16, [8, 4], weights(32).tolist())
    io = [value("x", T.BFLOAT16, ["b", 8])], [value("y", T.BFLOAT16, ["b", 4])]
    return model([linear("x", "y")], *io, [weight])


@strange
def int32_products() -> onnx.ModelProto:
    weight = const("w", np.ones((8, 4), np.int32))
    return model(
        [linear("x", "y")],
        [value("x", T.INT32, ["b", 8])],
        [value("y", T.INT32, ["b", 4])],
        [weight],
    )


@strange
def strings() -> onnx.ModelProto:
    io = [value("x", T.STRING, ["b"])], [value("y", T.STRING, ["b"])]
    return model([node("Identity", ["x"], ["y"])], *io)


@strange
def constant_strings() -> onnx.ModelProto:
    names = helper.make_tensor("names", T.STRING, [3], [b"cat", b"dog", b"owl"])
    nodes = [
        linear("x", "scores"),
        node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        node("Clip", ["best", "low", "high"], ["index"]),
        node("Gather", ["names", "index"], ["y"]),
    ]
    constants = [WEIGHT, names, const("low", np.int64(0)), const("high", np.int64(2))]
    return model(nodes, [FEATURES], [value("y", T.STRING, ["b"])], constants)


@strange
def int4_weights() -> onnx.ModelProto:
    weight = helper.make_tensor("q", T.INT4, [8, 4], [1, -2] * 16)
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), linear("x", "y")]
    return model(nodes, [FEATURES], [RESULT], [weight, const("s", np.float32(0.1))], opset=21)


@strange
def float8_weights() -> onnx.ModelProto:
    weight = helper.make_tensor("q", T.FLOAT8E4M3FN, [8, 4], [0.5, -1.0] * 16)
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), linear("x", "y")]
    return model(nodes, [FEATURES], [RESULT], [weight, const("s", np.float32(0.1))])


@strange
def complex_numbers() -> onnx.ModelProto:
    io = [value("x", T.COMPLEX64, ["b", 8])], [value("y", T.COMPLEX64, ["b", 8])]
    return model([node("Identity", ["x"], ["y"])], *io)


@strange
def uint8_images() -> onnx.ModelProto:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Cast", ["t"], ["f"], to=T.FLOAT),
        node("Conv", ["f", "w"], ["y"]),
    ]
    io = [value("x", T.UINT8, ["b", 8, 8, 3])], [value("y", T.FLOAT, ["b", 4, 6, 6])]
    return model(nodes, *io, [const("w", weights(4, 3, 3, 3))])


@strange
def uint16_and_int16() -> onnx.ModelProto:
    nodes = [
        node("Cast", ["x"], ["f"], to=T.FLOAT),
        linear("f", "p"),
        node("Cast", ["p"], ["y"], to=T.INT16),
    ]
    io = [value("x", T.UINT16, ["b", 8])], [value("y", T.INT16, ["b", 4])]
    return model(nodes, *io, [WEIGHT])


@strange
def unsigned_qdq() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        linear("d", "y"),
    ]
    constants = [WEIGHT, const("s", np.float32(0.1)), const("z", np.uint8(128))]
    return model(nodes, [FEATURES], [RESULT], constants)


@strange
def integer_operators() -> onnx.ModelProto:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=T.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    return model(nodes, [FEATURES], [RESULT], [const("w", np.ones((8, 4), np.int8))])


# What isn't a tensor


@strange
def sequence_inside() -> onnx.ModelProto:
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]),
        node("ConcatFromSequence", ["s"], ["c"], axis=1),
        linear("c", "y"),
    ]
    return model(nodes, [FEATURES], [RESULT], [const("w", weights(16, 4))])


@strange
def sequence_output() -> onnx.ModelProto:
    made = helper.make_tensor_sequence_value_info("y", T.FLOAT, ["b", 4])
    nodes = [linear("x", "p"), node("SequenceConstruct", ["p"], ["y"])]
    return model(nodes, [FEATURES], [made], [WEIGHT])


@strange
def sequence_input() -> onnx.ModelProto:
    given = helper.make_tensor_sequence_value_info("x", T.FLOAT, ["b", 8])
    nodes = [node("ConcatFromSequence", ["x"], ["c"], axis=0), linear("c", "y")]
    return model(nodes, [given], [RESULT], [WEIGHT])


@strange
def optional_inside() -> onnx.ModelProto:
    nodes = [
        node("Optional", ["x"], ["o"]),
        node("OptionalGetElement", ["o"], ["e"]),
        linear("e", "y"),
    ]
    return model(nodes, [FEATURES], [RESULT], [WEIGHT])


@strange
def optional_input() -> onnx.ModelProto:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, ["b", 8]))
    given = helper.make_value_info("x", kind)
    nodes = [node("OptionalGetElement", ["x"], ["e"]), linear("e", "y")]
    return model(nodes, [given], [RESULT], [WEIGHT])


# Control flow and functions


@strange
def branch() -> onnx.ModelProto:
    then = helper.make_graph([linear("x", "t")], "then", [], [value("t", T.FLOAT, ["b", 4])])
    other = helper.make_graph([linear("x", "e", "v")], "else", [], [value("e", T.FLOAT, ["b", 4])])
    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    constants = [WEIGHT, const("v", weights(8, 4) * 2), const("zero", np.float32(0))]
    return model(nodes, [FEATURES], [RESULT], constants)


@strange
def branches_of_other_shapes() -> onnx.ModelProto:
    then = helper.make_graph([linear("x", "t")], "then", [], [value("t", T.FLOAT, ["b", 4])])
    other = helper.make_graph(
        [node("Identity", ["x"], ["e"])], "else", [], [value("e", T.FLOAT, ["b", 8])]
    )
    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    constants = [WEIGHT, const("zero", np.float32(0))]
    return model(nodes, [FEATURES], [value("y", T.FLOAT, ["b", "n"])], constants)


@strange
def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("MatMul", ["state", "w"], ["next"]), node("Identity", ["go"], ["still"])],
        "body",
        [value("i", T.INT64, []), value("go", T.BOOL, []), value("state", T.FLOAT, ["b", 8])],
        [value("still", T.BOOL, []), value("next", T.FLOAT, ["b", 8])],
    )
    nodes = [node("Loop", ["count", "", "x"], ["y"], body=body)]
    constants = [const("w", weights(8, 8) / 4), const("count", np.int64(3))]
    return model(nodes, [FEATURES], [value("y", T.FLOAT, ["b", 8])], constants)


@strange
def scan() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Add", ["state", "row"], ["next"]), node("Identity", ["next"], ["out"])],
        "body",
        [value("state", T.FLOAT, [8]), value("row", T.FLOAT, [8])],
        [value("next", T.FLOAT, [8]), value("out", T.FLOAT, [8])],
    )
    nodes = [node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    outputs = [value("last", T.FLOAT, [8]), value("y", T.FLOAT, ["b", 8])]
    return model(nodes, [FEATURES], outputs, [const("start", np.zeros(8, np.float32))])


@strange
def local_function() -> onnx.ModelProto:
    function = helper.make_function(
        "local",
        "Linear",
        ["a", "b"],
        ["c"],
        [node("MatMul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    return model(
        [node("Linear", ["x", "w"], ["y"], domain="local")],
        [FEATURES],
        [RESULT],
        [WEIGHT],
        functions=[function],
    )


# Shapes and sizes


@strange
def size_input() -> onnx.ModelProto:
    io = (
        [FEATURES, value("k", T.INT64, [1])],
        [value("y", T.FLOAT, ["b", "k"]), value("i", T.INT64, ["b", "k"])],
    )
    return model([node("TopK", ["x", "k"], ["y", "i"])], *io)


@strange
def data_dependent_output() -> onnx.ModelProto:
    nodes = [linear("x", "p"), node("NonZero", ["p"], ["y"])]
    return model(nodes, [FEATURES], [value("y", T.INT64, [2, "n"])], [WEIGHT])


@strange
def data_dependent_shape() -> onnx.ModelProto:
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Cast", ["m"], ["n"], to=T.INT64),
        node("Abs", ["n"], ["a"]),
        node("Range", ["zero", "a", "one"], ["r"]),
        node("Cast", ["r"], ["y"], to=T.FLOAT),
    ]
    constants = [const("zero", np.int64(0)), const("one", np.int64(1))]
    return model(nodes, [FEATURES], [value("y", T.FLOAT, ["n"])], constants)


@strange
def nine_axes() -> onnx.ModelProto:
    io = [value("x", T.FLOAT, [1] * 8 + [8])], [value("y", T.FLOAT, [1] * 8 + [4])]
    return model([linear("x", "y")], *io, [WEIGHT])


@strange
def scalar_input() -> onnx.ModelProto:
    nodes = [node("Mul", ["x", "s"], ["m"]), linear("m", "y")]
    return model(nodes, [FEATURES, value("s", T.FLOAT, [])], [RESULT], [WEIGHT])


@strange
def empty_axis() -> onnx.ModelProto:
    nodes = [node("Concat", ["cache", "x"], ["all"], axis=0), linear("all", "y")]
    io = [FEATURES, value("cache", T.FLOAT, [0, 8])], [value("y", T.FLOAT, ["n", 4])]
    return model(nodes, *io, [WEIGHT])


@strange
def fixed_size_inside() -> onnx.ModelProto:
    nodes = [node("Reshape", ["x", "shape"], ["r"]), linear("r", "y")]
    return model(nodes, [FEATURES], [value("y", T.FLOAT, [4, 4])], [WEIGHT, const("shape", [4, 8])])


@strange
def indices() -> onnx.ModelProto:
    nodes = [node("Gather", ["table", "x"], ["e"]), linear("e", "y")]
    io = [value("x", T.INT64, ["b", 3])], [value("y", T.FLOAT, ["b", 3, 4])]
    return model(nodes, *io, [WEIGHT, const("table", weights(2, 8))])


@strange
def unknown_rank() -> onnx.ModelProto:
    return model([linear("x", "y")], [FEATURES], [value("y", T.FLOAT, None)], [WEIGHT])


# How a graph is written


@strange
def no_inputs() -> onnx.ModelProto:
    return model(
        [linear("x", "y")], [], [value("y", T.FLOAT, [2, 4])], [WEIGHT, const("x", weights(2, 8))]
    )


@strange
def nothing_but_a_constant() -> onnx.ModelProto:
    made = value("y", T.FLOAT, [2])
    return model([node("Constant", [], ["y"], value_floats=[1.0, 2.0])], [FEATURES], [made])


@strange
def input_is_an_output() -> onnx.ModelProto:
    return model([linear("x", "y")], [FEATURES], [RESULT, FEATURES], [WEIGHT])


@strange
def weight_is_an_output() -> onnx.ModelProto:
    return model([linear("x", "y")], [FEATURES], [RESULT, value("w", T.FLOAT, [8, 4])], [WEIGHT])


@strange
def output_is_taken_again() -> onnx.ModelProto:
    nodes = [linear("x", "y"), node("Relu", ["y"], ["z"])]
    return model(nodes, [FEATURES], [RESULT, value("z", T.FLOAT, ["b", 4])], [WEIGHT])


@strange
def weights_in_nodes() -> onnx.ModelProto:
    nodes = [node("Constant", [], ["w"], value=const("w", weights(8, 4))), linear("x", "y")]
    return model(nodes, [FEATURES], [RESULT])


@strange
def sparse_weights() -> onnx.ModelProto:
    values = const("w", np.ones(3, np.float32))
    places = const("places", np.array([0, 9, 31], np.int64))
    sparse = helper.make_sparse_tensor(values, places, [8, 4])
    return model([linear("x", "y")], [FEATURES], [RESULT], sparse=[sparse])


@strange
def weight_with_an_input() -> onnx.ModelProto:
    """A default: the input of the same name may replace it."""
    return model([linear("x", "y")], [FEATURES, value("w", T.FLOAT, [8, 4])], [RESULT], [WEIGHT])


@strange
def names_of_all_kinds() -> onnx.ModelProto:
    nodes = [node("MatMul", ["in put/0:x", "wéight\n"], ["y y"], name='"')]
    io = [value("in put/0:x", T.FLOAT, ["b", 8])], [value("y y", T.FLOAT, ["b", 4])]
    return model(nodes, *io, [const("wéight\n", weights(8, 4))])


@strange
def huge_values() -> onnx.ModelProto:
    return model([linear("x", "y")], [FEATURES], [RESULT], [const("w", weights(8, 4) * 1e30)])


@strange
def not_numbers() -> onnx.ModelProto:
    nodes = [linear("x", "p"), node("Log", ["p"], ["y"])]
    return model(nodes, [FEATURES], [RESULT], [WEIGHT])


@strange
def no_weights() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [FEATURES], [value("y", T.FLOAT, ["b", 8])])


@strange
def booleans() -> onnx.ModelProto:
    nodes = [
        linear("x", "p"),
        node("Greater", ["p", "zero"], ["g"]),
        node("And", ["g", "mask"], ["y"]),
    ]
    io = [FEATURES, value("mask", T.BOOL, ["b", 4])], [value("y", T.BOOL, ["b", 4])]
    return model(nodes, *io, [WEIGHT, const("zero", np.float32(0))])


@strange
def random_values() -> onnx.ModelProto:
    nodes = [
        linear("x", "p"),
        node("RandomUniformLike", ["p"], ["r"]),
        node("Add", ["p", "r"], ["y"]),
    ]
    return model(nodes, [FEATURES], [RESULT], [WEIGHT])


@strange
def old_opset() -> onnx.ModelProto:
    nodes = [node("BatchNormalization", ["x", "s", "s", "s", "s"], ["n"]), linear("n", "y")]
    return model(nodes, [FEATURES], [RESULT], [WEIGHT, const("s", np.ones(8, np.float32))], opset=7)


@strange
def newest_opset() -> onnx.ModelProto:
    return model(
        [linear("x", "y")], [FEATURES], [RESULT], [WEIGHT], opset=onnx.defs.onnx_opset_version()
    )


@strange
def opset_to_come() -> onnx.ModelProto:
    return model(
        [linear("x", "y")], [FEATURES], [RESULT], [WEIGHT], opset=onnx.defs.onnx_opset_version() + 1
    )


@strange
def two_axes_of_one_name() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "z"], ["y"])]
    io = (
        [value("x", T.FLOAT, ["n", "n"]), value("z", T.FLOAT, ["n", 4])],
        [value("y", T.FLOAT, ["n", 4])],
    )
    return model(nodes, *io)


@strange
def training_dropout() -> onnx.ModelProto:
    nodes = [node("Dropout", ["x", "ratio", "training"], ["d"]), linear("d", "y")]
    constants = [WEIGHT, const("ratio", np.float32(0.5)), const("training", np.bool_(True))]
    return model(nodes, [FEATURES], [RESULT], constants)


@strange
def machine_learning_operator() -> onnx.ModelProto:
    nodes = [
        node("Scaler", ["x"], ["m"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0]),
        linear("m", "y"),
    ]
    made = model(nodes, [FEATURES], [RESULT], [WEIGHT])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made
