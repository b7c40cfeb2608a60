"""Models that ONNX Runtime has optimised hold operators that it alone has: they are built for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.zoo import runner


def feed_forward() -> onnx.ModelProto:
    """A block of a transformer as ONNX Runtime fuses it, in an opset that no engine needs newer."""
    draw = np.random.default_rng(0).standard_normal
    weights = {"w": draw((32, 64)) / 6, "b": draw(64), "v": draw((64, 32)) / 8}
    weights |= {"gamma": np.ones(32), "beta": np.zeros(32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("BiasGelu", ["p", "b"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "v"], ["q"]),
        helper.make_node(
            "SkipLayerNormalization", ["q", "x", "gamma", "beta"], ["y"], domain="com.microsoft"
        ),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "block",
        [value("x", TensorProto.FLOAT, ["n", 7, 32])],
        [value("y", TensorProto.FLOAT, ["n", 7, 32])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], runner.Built]:
    folder = tmp_path_factory.mktemp("own")
    onnx.save(feed_forward(), str(folder / "model.onnx"))
    x = np.random.default_rng(1).standard_normal((16, 7, 32)).astype(np.float32)
    source = runner.Source(name="own", path=folder / "model.onnx", format="onnx", samples={"x": x})
    ended = runner.build(
        source, precisions=["fp32", "fp16", "int8"], gpus=["cpu", "sm_89"], folder=folder
    )
    return {(one.precision, one.target.partition(":")[2]): one for one in ended}


def test_they_are_built_for_the_cpu_as_they_are(
    built: dict[tuple[str, str], runner.Built],
) -> None:
    one = built["fp32", "cpu"]
    assert one.error is None
    assert one.accuracy.cosine_min > 0.9999
    assert one.facts["compute"]["types"]["fp32"]["layers"] == 2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("gpu", ["cpu", "sm_89"])
def test_other_types_of_them_are_refused_with_what_can_be_had(
    built: dict[tuple[str, str], runner.Built], precision: str, gpu: str
) -> None:
    error = built[precision, gpu].error
    assert error is not None
    assert "BiasGelu, SkipLayerNormalization" in error.detail
    assert "onnxruntime:cpu" in (error.hint or "")


def test_tensorrt_is_said_to_lack_them(built: dict[tuple[str, str], runner.Built]) -> None:
    error = built["fp32", "sm_89"].error
    assert error is not None
    assert error.detail == (
        "tensorrt-rtx:sm_89 lacks operators of the model that ONNX Runtime alone has: "
        "BiasGelu, SkipLayerNormalization"
    )
    assert "onnxruntime:cpu" in (error.hint or "")
