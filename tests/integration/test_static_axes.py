"""A profile that leaves an axis one size makes TensorRT take what it refuses of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.zoo import runner


def squeezed() -> onnx.ModelProto:
    """One sample, whose axes of one element are dropped before it is multiplied."""
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Squeeze", ["r"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "squeezed",
        [value("x", TensorProto.FLOAT, ["n", "rows", 8])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    graph.output[0].CopyFrom(value("y", TensorProto.FLOAT, ["rows", 16]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def branching() -> onnx.ModelProto:
    """An If on a size that the profile settles, as torch.jit exports ``squeeze``; a product either way."""
    draw = np.random.default_rng(0).standard_normal
    tensors = {"last": np.array([-1]), "one": np.array([1])}
    tensors |= {"w": draw((8, 16)).astype(np.float32), "v": draw((8, 16)).astype(np.float32)}
    value = helper.make_tensor_value_info

    def branch(reduce: onnx.NodeProto, weight: str, name: str) -> onnx.GraphProto:
        product = helper.make_node("MatMul", [*reduce.output, weight], [name])
        return helper.make_graph(
            [reduce, product], name, [], [value(name, TensorProto.FLOAT, ["n", 16])]
        )

    then = branch(helper.make_node("Squeeze", ["r", "last"], ["s"]), "w", "a")
    mean = helper.make_node("ReduceMean", ["r", "last"], ["m"], keepdims=0)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["size"], axis=0),
        helper.make_node("Equal", ["size", "one"], ["is_one"]),
        helper.make_node(
            "If", ["is_one"], ["y"], then_branch=then, else_branch=branch(mean, "v", "b")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [value("x", TensorProto.FLOAT, ["n", 8, "t"])],
        [value("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_branch_that_the_sizes_rule_out_is_not_built(tmp_path: Path) -> None:
    onnx.save(branching(), str(tmp_path / "model.onnx"))
    source = runner.Source(
        name="branching",
        path=tmp_path / "model.onnx",
        format="onnx",
        samples={"x": np.random.default_rng(1).standard_normal((16, 8, 1)).astype(np.float32)},
        profiles=[{"x": {"min": [1, 8, 1], "opt": [4, 8, 1], "max": [8, 8, 1]}}],
    )
    wanted = ["fp32", "fp16"]
    for one in runner.build(source, precisions=wanted, gpus=["sm_89"], folder=tmp_path):
        assert one.error is None
        assert one.accuracy.cosine_min > 0.999
        assert one.facts["inputs"][0]["shape"] == ["n", 8, 1]
        assert sum(found["layers"] for found in one.facts["compute"]["types"].values()) == 1


@pytest.mark.parametrize(
    ("counts", "is_built"), [((1, 1, 1), True), ((1, 1, 4), False)], ids=["one size", "some sizes"]
)
def test_a_squeeze_without_axes_is_built_where_all_sizes_are_known(
    counts: tuple[int, int, int], is_built: bool, tmp_path: Path
) -> None:
    onnx.save(squeezed(), str(tmp_path / "model.onnx"))
    shapes = zip(("min", "opt", "max"), counts, strict=True)
    source = runner.Source(
        name="squeezed",
        path=tmp_path / "model.onnx",
        format="onnx",
        samples={"x": np.random.default_rng(1).standard_normal((1, 3, 8)).astype(np.float32)},
        profiles=[{"x": {which: [size, 3, 8] for which, size in shapes}}],
    )
    (one,) = runner.build(source, precisions=["fp32"], gpus=["sm_89"], folder=tmp_path)
    if is_built:
        assert one.error is None
        assert one.facts["inputs"][0]["shape"] == [1, 3, 8]
    else:
        assert one.error is not None
        assert "Squeeze" in one.error.detail
        assert "axes" in (one.error.hint or "")
