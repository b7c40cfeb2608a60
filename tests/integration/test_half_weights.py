"""fp16 engines for CPUs: weights of half the bytes, operators in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.zoo import runner
from workers.graphs.shapes import types_of
from workers.graphs.walk import all_nodes
from workers.quantize.half_weights import has_halves, keep_in_halves


def convolutions(dtype: type) -> onnx.ModelProto:
    """A trunk and a head whose weights, but for the biases, are worth keeping in halves."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    draw = np.random.default_rng(0).standard_normal
    weights = {
        "w": draw((32, 16, 3, 3)) / 12,
        "b": draw(32),
        "v": draw((64, 32, 3, 3)) / 17,
        "k": draw((64, 40)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("LeakyRelu", ["c"], ["l"], alpha=0.25),
        helper.make_node("MaxPool", ["l"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "v"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "k"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", kind, ["n", 16, 12, 12])],
        [helper.make_tensor_value_info("y", kind, ["n", 40])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module", params=[np.float32, np.float16])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, runner.Built]:
    folder = tmp_path_factory.mktemp("half")
    path = folder / "model.onnx"
    onnx.save(convolutions(request.param), str(path))
    x = np.random.default_rng(1).standard_normal((16, 16, 12, 12)).astype(request.param)
    source = runner.Source(name="halves", path=path, format="onnx", samples={"x": x})
    ended = runner.build(source, precisions=["fp32", "fp16"], gpus=["cpu"], folder=folder)
    return {one.precision: one for one in ended}


def engine(built: Mapping[str, runner.Built], precision: str) -> Path:
    return built[precision].build.outputs["engine"]


def test_an_fp16_engine_for_the_cpu_computes_in_fp32_from_weights_in_fp16(
    built: Mapping[str, runner.Built],
) -> None:
    graph = onnx.load(str(engine(built, "fp16")))
    types = types_of(graph)
    given = {value.name for value in graph.graph.input}
    halves = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == 10}
    assert len(halves) == 3
    for node in all_nodes(graph.graph):
        taken = {name for name in node.input if types.get(name) == TensorProto.FLOAT16}
        assert node.op_type == "Cast" or not taken, node.op_type
        assert taken <= halves | given, node.op_type


def test_it_is_right_in_whatever_session_loads_it(built: Mapping[str, runner.Built]) -> None:
    assert built["fp16"].accuracy.cosine_min > 0.9999
    x = np.random.default_rng(2).standard_normal((3, 16, 12, 12))
    answers = []
    for level in onnxruntime.GraphOptimizationLevel.__members__.values():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(str(engine(built, "fp16")), options)
        dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
        answers.append(session.run(None, {"x": x.astype(dtype)})[0].astype(np.float32))
    assert len(answers) >= 4
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], atol=2e-3 * np.abs(answers[0]).max())


def test_it_takes_half_the_bytes_of_a_model_of_fp32(built: Mapping[str, runner.Built]) -> None:
    weights = sum(
        numpy_helper.to_array(tensor).size
        for tensor in onnx.load(str(engine(built, "fp16"))).graph.initializer
    )
    assert engine(built, "fp16").stat().st_size < 2 * weights + 8000


def test_weights_that_fp16_cannot_hold_stay_in_fp32() -> None:
    made = convolutions(np.float32)
    for tensor, factor in zip(made.graph.initializer, (1e6, 1, 1e-7, 1), strict=True):
        array = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert not has_halves(made)
    assert keep_in_halves(made) == 1
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    one, half = TensorProto.FLOAT, TensorProto.FLOAT16
    assert kinds == {"w": one, "b": one, "v": one, "k__fp16": half}
    assert has_halves(made)
    onnx.checker.check_model(made, full_check=True)
