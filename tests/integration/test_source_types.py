"""Sources of fp16, bf16 and fp64: each is built in the types that it can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.typed_graphs import (
    D,
    F,
    H,
    all_right,
    build,
    graph,
    model,
    node,
    noise,
    norm,
    random,
    value,
)
from workers.backends.ort.cpu import OrtModel
from workers.graphs import floats
from workers.graphs.rounding import rounded_model


def detector(dtype: type) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        node("Conv", "x w b", "a", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "r"),
        node("Conv", "r v", "e", pads=[1] * 4),
        node("Relu", "e", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f k", "y"),
    ]
    tensors = {
        "w": random(16, 3, 3, 3),
        "b": random(16),
        "v": random(32, 16, 3, 3),
        "k": random(32, 8),
    }
    inputs = [value("x", kind, ["n", 3, 16, 16])]
    given = {name: array.astype(dtype) for name, array in tensors.items()}
    return model(graph(nodes, inputs, [value("y", kind, ["n", 8])], given))


@pytest.mark.heavy
def test_a_source_of_fp16_keeps_its_types_and_can_be_cast_and_calibrated(tmp_path: Path) -> None:
    samples = {"x": noise(32, 3, 16, 16, dtype=np.float16)}
    precisions = ["fp32", "fp16", "int8"]
    built = build(tmp_path, detector(np.float16), samples, precisions, ["sm_89"])
    built |= build(tmp_path, detector(np.float16), samples, ["fp16"], ["sm_75"])
    all_right(built, 0.995)
    assert built["fp32", "sm_89"].facts["float_types"] == ["float16"]
    cast = built["fp16", "sm_89"].results["cast"].facts
    assert cast["own_types"] == ["float16"]
    for one in built.values():
        assert one.facts["compute"]["types"].get("fp32") is None
        assert one.facts["inputs"][0]["dtype"] == "float16"
    all_right(build(tmp_path, detector(np.float16), samples, precisions[:2], ["cpu"]), 0.999)
    all_right(build(tmp_path, detector(np.float16), samples, ["bf16"], ["sm_89"]), 0.999)


@pytest.mark.heavy
def test_an_onnx_source_of_bf16_can_be_built_cast_and_calibrated(tmp_path: Path) -> None:
    import ml_dtypes

    made = detector(ml_dtypes.bfloat16)
    samples = {"x": noise(32, 3, 16, 16)}  # NumPy has no bf16: fp32, rounded where it is run
    built = build(tmp_path, made, samples, ["fp32", "fp16", "int8"], ["cpu", "sm_89"])
    all_right({key: one for key, one in built.items() if key != ("int8", "cpu")}, 0.995)
    assert built["fp32", "cpu"].facts["narrowed"] == ["bfloat16"]
    assert built["fp32", "sm_89"].facts["float_types"] == ["bfloat16"]
    assert set(built["fp16", "sm_89"].facts["compute"]["types"]) == {"fp16"}


@pytest.mark.heavy
def test_a_program_of_bf16_can_be_built_and_cast(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    x = torch.randn(2, 16).bfloat16()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module.eval().bfloat16(), (x,), dynamic_shapes={"input": {0: batch}}
    )
    path = tmp_path / "half.pt2"
    torch.export.save(program, path)
    built = build(tmp_path, path, {"input": noise(32, 16)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right(built, 0.999)
    assert built["fp32", "sm_89"].facts["float_types"] == ["bfloat16"]


def doubles() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("MatMul", "r k", "y")]
    tensors = {"w": random(16, 64).astype(np.float64), "k": random(64, 8).astype(np.float64)}
    inputs = [value("x", D, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", D, ["n", 8])], tensors))


@pytest.mark.heavy
def test_fp64_is_exact_on_the_cpu_and_narrowed_with_a_note_for_gpus(tmp_path: Path) -> None:
    samples = {"x": noise(32, 16, dtype=np.float64)}
    built = build(tmp_path, doubles(), samples, ["fp32"], ["cpu", "sm_89"])
    all_right(built, 0.99999)
    assert built["fp32", "cpu"].accuracy.max_abs_error < 1e-12
    assert built["fp32", "cpu"].facts["narrowed"] == []
    gpu = built["fp32", "sm_89"].facts
    assert gpu["narrowed"] == ["float64"]
    assert [spec["dtype"] for spec in (*gpu["inputs"], *gpu["outputs"])] == ["float32"] * 2
    all_right(build(tmp_path, doubles(), samples, ["fp16"], ["cpu", "sm_75", "sm_89"]), 0.999)
    all_right(build(tmp_path, doubles(), samples, ["int8"], ["sm_75"]), 0.99)


@pytest.mark.heavy
def test_one_constant_of_fp64_is_no_reason_to_refuse_a_cast(tmp_path: Path) -> None:
    half = node("Constant", "", "half", value=numpy_helper.from_array(np.float64(0.5)))
    half.ClearField("input")
    nodes = [
        half,
        node("Cast", "x", "xd", to=D),
        node("Mul", "xd half", "xs"),
        node("Cast", "xs", "xf", to=F),
        node("MatMul", "xf w", "y"),
    ]
    inputs, outputs = [value("x", F, ["n", 16])], [value("y", F, ["n", 8])]
    made = model(graph(nodes, inputs, outputs, {"w": random(16, 8)}))
    built = build(tmp_path, made, {"x": noise(32, 16)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right(built, 0.999)


def test_rounding_emulates_bodies_and_interfaces_of_half_types() -> None:
    made = detector(np.float16)
    rounded = rounded_model(made)
    assert [v.type.tensor_type.elem_type for v in rounded.graph.input] == [H]
    x = {"x": noise(4, 3, 16, 16, dtype=np.float16)}
    expected = OrtModel(made.SerializeToString(), optimisation="none").run(x)["y"]
    actual = OrtModel(rounded.SerializeToString(), optimisation="none").run(x)["y"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_float_types_are_told_the_most_frequent_first() -> None:
    assert floats.float_types(doubles()) == ["float64"]
    assert floats.float_types(norm()) == ["float32"]
