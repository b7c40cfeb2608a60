"""The table's words are what the libraries say today: each is provoked, and found by its entry."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto as T
from torch import nn

from farm.errors import ChildOutOfMemory, FarmError, InvalidModel, StageFailed
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.shapes import ShapeRange
from farm.stages import ExportParams, JobKind
from tests import strange_models as strange
from tests.strange_models import FEATURES, const, model, node, value, weights
from tests.unit.test_known_failures import SAID
from workers.backends.ort.cpu import OrtModel
from workers.backends.trt.build import build_plan
from workers.failures.asked import Asked
from workers.failures.explained import explained, said_by_others
from workers.failures.known import known
from workers.stages.base import Stage, run

ADA = Target(runtime="tensorrt-rtx", gpu="sm_89")
FOUR = value("x", T.FLOAT, [4])


def assert_known(err: Exception, name: str, asked: Asked) -> None:
    """The entry of what was raised is the one of the words that are on record."""
    found, expected = known(said_by_others(err), asked), known(SAID[name], asked)
    assert found is not None, said_by_others(err)
    assert expected is not None
    assert found[0].pattern == expected[0].pattern, said_by_others(err)
    assert explained(err, asked).hint == found[1]


# TensorRT-RTX

RTX: dict[str, Callable[[], onnx.ModelProto]] = {
    "nonzero": strange.data_dependent_output,
    "uint8": strange.uint8_images,
    "operator": strange.sequence_inside,
    "int32": strange.int32_products,
    "type": strange.uint16_and_int16,
    "axes": strange.nine_axes,
    "zero-point": strange.unsigned_qdq,
    "unregistered": strange.loop,
    "input-output": strange.input_is_an_output,
    "dropout": strange.training_dropout,
    "plugin": lambda: model(
        [node("DFT", ["x"], ["y"])],
        [value("x", T.FLOAT, [1, 8, 1])],
        [value("y", T.FLOAT, [1, 8, 2])],
        opset=19,
    ),
    "mixed": lambda: model(
        [node("Cast", ["x"], ["a"], to=T.FLOAT16), node("Add", ["a", "w"], ["y"])],
        [FOUR],
        [value("y", T.FLOAT16, [4])],
        [const("w", weights(4))],
    ),
    "in-flight": lambda: model(
        [
            node("ReduceMax", ["x"], ["m"]),
            node("Cast", ["m"], ["n"], to=T.INT64),
            node("Reshape", ["x", "n"], ["y"]),
        ],
        [FOUR],
        [value("y", T.FLOAT, ["n"])],
    ),
    "shape-input": strange.size_input,
    "deconv": lambda: model(
        [node("ConvTranspose", ["x", "w"], ["y"], strides=[2], dilations=[2])],
        [value("x", T.FLOAT, [1, 3, 8])],
        [value("y", T.FLOAT, [1, 4, "n"])],
        [const("w", weights(3, 4, 3))],
    ),
    "channels": lambda: model(
        [node("Conv", ["x", "w"], ["y"])],
        [value("x", T.FLOAT, [1, 5, 8, 8])],
        [value("y", T.FLOAT, [1, 4, 6, 6])],
        [const("w", weights(4, 3, 3, 3))],
    ),
    "runners": lambda: model(
        [node("NonMaxSuppression", ["x", "s", "m"], ["y"])],
        [value("x", T.FLOAT, [1, 9, 4]), value("s", T.FLOAT, [1, 2, 9])],
        [value("y", T.INT64, ["n", 3])],
        [const("m", np.int64([5]))],
    ),
}


def build(made: onnx.ModelProto, folder: Path, capability: str = "sm_89") -> FarmError:
    onnx.save(made, str(folder / "model.onnx"))
    profile = {
        given.name: ShapeRange(min=(1, *rest), opt=(2, *rest), max=(4, *rest))
        for given in made.graph.input
        if given.type.tensor_type.shape.dim[0].dim_param == "b"
        for rest in [tuple(dim.dim_value for dim in given.type.tensor_type.shape.dim[1:])]
    }
    with pytest.raises(StageFailed) as caught:
        build_plan(
            Runtime.TENSORRT_RTX,
            folder / "model.onnx",
            [profile] if profile else [],
            capability,
            BuilderOptions(),
            lambda _phase, _share: None,
        )
    return caught.value


@pytest.mark.parametrize("name", RTX)
def test_what_tensorrt_refuses_is_known(name, tmp_path):
    error = build(RTX[name](), tmp_path)
    assert_known(error, name, Asked(stage=JobKind.BUILD, precision=Precision.FP16, target=ADA))
    assert "/_src/" not in error.detail
    assert "CUDA driver" not in error.detail


def on_turing(kind: int) -> onnx.ModelProto:
    nodes = [
        node("Cast", ["x"], ["a"], to=kind),
        node("Cast", ["w32"], ["w"], to=kind),
        node("MatMul", ["a", "w"], ["m"]),
        node("Cast", ["m"], ["y"], to=T.FLOAT),
    ]
    return model(nodes, [FEATURES], [strange.RESULT], [const("w32", weights(8, 4))])


@pytest.mark.parametrize(("name", "kind"), [("gemm", T.FLOAT), ("bf16", T.BFLOAT16)])
def test_what_turing_lacks_is_known(name, kind, tmp_path):
    target = Target(runtime="tensorrt-rtx", gpu="sm_75")
    error = build(on_turing(kind), tmp_path, "sm_75")
    assert_known(error, name, Asked(stage=JobKind.BUILD, precision=Precision.FP16, target=target))


def test_an_operator_that_tensorrt_lacks_is_told_in_words(tmp_path):
    error = build(strange.sequence_inside(), tmp_path)
    assert "it has no such operator (operator SequenceConstruct" in error.detail


# ONNX Runtime

LOADED: dict[str, Callable[[], onnx.ModelProto]] = {
    "opset": strange.opset_to_come,
    "kernel": strange.bf16,
    "complex": strange.complex_numbers,
    "bad-type": lambda: model(
        [node("Conv", ["x", "w"], ["y"])],
        [value("x", T.BFLOAT16, [1, 3, 8, 8])],
        [value("y", T.BFLOAT16, [1, 4, 6, 6])],
        [onnx.helper.make_tensor("w", T.BFLOAT16, [4, 3, 3, 3], [0.5] * 108)],
    ),
    "bound": lambda: model(
        [node("Add", ["x", "w"], ["y"])],
        [FOUR],
        [value("y", T.FLOAT, [4])],
        [const("w", np.ones(4, np.int64))],
    ),
    "unknown-op": lambda: model(
        [node("Frobnicate", ["x"], ["y"])], [FOUR], [value("y", T.FLOAT, [4])]
    ),
    "contradiction": lambda: model(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", T.FLOAT, [2, 3])],
        [value("y", T.FLOAT, [2, 4])],
        [const("w", weights(5, 4))],
    ),
}
EXPORTED = Asked(stage=JobKind.EXPORT)


@pytest.mark.parametrize("name", LOADED)
def test_what_onnx_runtime_does_not_load_is_known(name):
    with pytest.raises(InvalidModel) as caught:
        OrtModel(LOADED[name]().SerializeToString())
    assert_known(caught.value, name, EXPORTED)
    assert "/onnxruntime_src/" not in caught.value.detail
    assert "[ONNXRuntimeError]" not in caught.value.detail


RUN: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, np.ndarray]]] = {
    "index": (strange.indices, {"x": np.int64([[0, 1, 99]])}),
    "k": (strange.size_input, {"x": weights(1, 8), "k": np.int64([99])}),
    "reshape": (strange.fixed_size_inside, {"x": weights(2, 8)}),
    "alloc": (
        lambda: model(
            [node("Expand", ["x", "s"], ["y"])],
            [value("x", T.FLOAT, [1]), value("s", T.INT64, [2])],
            [value("y", T.FLOAT, ["a", "b"])],
        ),
        {"x": weights(1), "s": np.int64([2**22, 2**24])},
    ),
}


@pytest.mark.parametrize("name", RUN)
def test_what_onnx_runtime_does_not_run_is_known(name):
    make, arrays = RUN[name]
    with pytest.raises(InvalidModel) as caught:
        OrtModel(make().SerializeToString()).run(arrays)
    assert_known(caught.value, name, EXPORTED)


def test_a_scalar_that_came_out_of_an_array_runs():
    made = strange.scalar_input()
    given = {"x": weights(2, 8), "s": np.float32(2)}
    assert OrtModel(made.SerializeToString()).run(given)["y"].shape == (2, 4)


# PyTorch


class Applied(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self.linear(x))


def program(function: Callable[[torch.Tensor], object], path: Path) -> Path:
    exported = torch.export.export(Applied(function).eval(), (torch.randn(2, 8),))
    torch.export.save(exported, path)
    return path


def export(source: Path, folder: Path) -> StageFailed:
    (folder / "work").mkdir()
    stage = Stage(
        kind=JobKind.EXPORT,
        params=ExportParams(format="pt2"),
        inputs={"source": source},
        workdir=folder / "work",
        progress=lambda _phase, _share: None,
    )
    with pytest.raises(StageFailed) as caught:
        run(stage)
    return caught.value


def test_an_operator_that_onnx_lacks_is_named_and_torchscript_offered(tmp_path):
    error = export(program(torch.lgamma, tmp_path / "model.pt2"), tmp_path)
    assert_known(error, "onnx-function", Asked(stage=JobKind.EXPORT))
    assert "rewrite prims.lgamma" in error.hint
    assert "torchscript:cpu" in error.hint


def test_an_output_that_is_no_tensor_is_known(tmp_path):
    error = export(program(lambda x: (x, "hello"), tmp_path / "model.pt2"), tmp_path)
    assert_known(error, "output", Asked(stage=JobKind.EXPORT))


def rewritten(source: Path, path: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = edit(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry, content)
    return path


def of_a_newer_schema(name: str, content: bytes) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    return json.dumps(json.loads(content) | {"schema_version": {"major": 99, "minor": 1}}).encode()


def without_weights(name: str, content: bytes) -> bytes | None:
    return None if "data/weights/weight" in name else content


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("schema", of_a_newer_schema),
        ("reader", without_weights),
    ],
)
def test_a_program_of_another_torch_or_half_a_file_is_known(name, edit, tmp_path):
    whole = program(torch.relu, tmp_path / "model.pt2")
    error = export(rewritten(whole, tmp_path / "edited.pt2", edit), tmp_path)
    assert_known(error, name, Asked(stage=JobKind.EXPORT))


def test_a_branch_on_values_is_known():
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(Exception, match="data-dependent") as caught:
        torch.export.export(Branch(), (torch.randn(2, 8),))
    assert_known(caught.value, "control", EXPORTED)


def test_torch_without_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48, dtype=torch.float32)
    told = explained(caught.value, Asked(stage=JobKind.MEASURE))
    assert type(told) is ChildOutOfMemory
