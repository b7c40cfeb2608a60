"""What ONNX allows is brought to one form that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from farm.errors import EngineBuildFailed
from tests.typed_graphs import F, all_right, build, graph, model, node, noise, random, value
from workers.backends.ort.cpu import OrtModel
from workers.graphs.normal import is_normal, normalised


def mlp() -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w", "a", name="first"),
        node("Relu", "a", "r", name="relu"),
        node("MatMul", "r k", "y", name="second"),
    ]
    tensors = {"w": random(64, 64), "k": random(64, 10)}
    inputs, outputs = [value("x", F, ["n", 64])], [value("y", F, ["n", 10])]
    return model(graph(nodes, inputs, outputs, tensors))


def sparse() -> onnx.ModelProto:
    made = mlp()
    tensor = next(t for t in made.graph.initializer if t.name == "w")
    array = numpy_helper.to_array(tensor).copy()
    array[np.abs(array) < 0.1] = 0
    at = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[at], "w")
    indices = numpy_helper.from_array(at.astype(np.int64), "at")
    made.graph.initializer.remove(tensor)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64, 64]))
    return made


def unsorted() -> onnx.ModelProto:
    made = mlp()
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([nodes[2], nodes[0], nodes[1]])
    return made


def same_names() -> onnx.ModelProto:
    made = mlp()
    for each in made.graph.node:
        each.name = "op"
    return made


def constants() -> onnx.ModelProto:
    made = mlp()
    tensors = list(made.graph.initializer)
    del made.graph.initializer[:]
    for tensor in tensors:
        made.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return made


def weight_given() -> onnx.ModelProto:
    made = mlp()
    made.graph.output.append(value("k", F, [64, 10]))
    return made


def unused_input() -> onnx.ModelProto:
    made = mlp()
    made.graph.input.append(value("unused", F, ["n", 3]))
    return made


ODD = (sparse, unsorted, same_names, constants, weight_given)


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_onnx_allows_is_brought_to_one_form_that_computes_the_same(
    make: Callable[[], onnx.ModelProto],
) -> None:
    made = make()
    normal = normalised(made)
    assert is_normal(normal)
    assert normalised(normal) is normal
    x = noise(4, 64)
    weights = {t.name: numpy_helper.to_array(t) for t in normalised(made).graph.initializer}
    expected = np.maximum(x @ weights["w"], 0) @ weights.get("k", weights.get("k__value"))
    found = OrtModel(normal.SerializeToString(), optimisation="none").run({"x": x})
    np.testing.assert_allclose(found["y"], expected, atol=1e-5)
    assert [v.name for v in normal.graph.output] == [v.name for v in made.graph.output]


@pytest.mark.parametrize("make", [*ODD, unused_input], ids=lambda make: make.__name__)
@pytest.mark.heavy
def test_what_onnx_allows_is_built_in_every_precision(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    made = make()
    samples = {"x": noise(64, 64)}
    if make is unused_input:
        samples["unused"] = noise(64, 3)
    all_right(build(tmp_path, made, samples, ["fp16", "int8"], ["sm_75", "sm_89"]), 0.99)
    all_right(build(tmp_path, made, samples, ["fp32", "fp16"], ["cpu"]), 0.999)


@pytest.mark.heavy
def test_an_output_that_is_an_input_is_built_for_cpus_and_refused_in_words_for_gpus(
    tmp_path: Path,
) -> None:
    made = mlp()
    made.graph.output.append(value("x", F, ["n", 64]))
    built = build(tmp_path, made, {"x": noise(64, 64)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right({key: one for key, one in built.items() if key[1] == "cpu"}, 0.999)
    for precision in ("fp32", "fp16"):
        error = built[precision, "sm_89"].error
        assert isinstance(error, EngineBuildFailed)
        assert "'x'" in error.detail
