"""Inputs with one value: folded into the graph, recorded, and fed to the source of every format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from torch import nn

from farm.cli.options import fixed_inputs
from farm.errors import FixedInputRefused, InvalidData, InvalidModel, InvalidRequest
from farm.schemas.submission import BuildRequest
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.stages import ExportParams, JobKind
from tests.zoo import runner
from workers.backends.ort.cpu import OrtModel
from workers.graphs import fixing, interface
from workers.inputs.samples import read_samples
from workers.stages import export
from workers.stages.base import Stage

RANDOM = np.random.default_rng(5)
WIDE, NARROW = 16000, 8000


def normal(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.3).astype(np.float32)


def branch(name: str, weights: np.ndarray) -> onnx.GraphProto:
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_m"]),
        helper.make_node("Relu", [f"{name}_m"], [f"{name}_y"]),
    ]
    made = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 8])
    return helper.make_graph(
        nodes, name, [], [made], [numpy_helper.from_array(weights, f"{name}_w")]
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes sound and its rate, and has weights for each of two rates."""
    wide, narrow = normal(16, 8), normal(16, 8)
    nodes = [
        helper.make_node("Equal", ["sr", "wide"], ["is_wide"]),
        helper.make_node(
            "If",
            ["is_wide"],
            ["h"],
            then_branch=branch("wide_branch", wide),
            else_branch=branch("narrow_branch", narrow),
        ),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.array(WIDE), "wide"),
            numpy_helper.from_array(normal(8, 4), "v"),
        ],
    )
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(path))
    return path


def exported(path: Path, folder: Path, kind: str = "onnx", **fields: Any) -> tuple[Path, Any]:
    folder.mkdir(exist_ok=True)
    params = ExportParams.model_validate({"format": kind} | fields)
    stage = Stage(
        kind=JobKind.EXPORT,
        params=params,
        inputs={"source": path},
        workdir=folder,
        progress=lambda *_: None,
    )
    made = export.run(stage)
    return made.outputs["onnx"], made.facts.model_dump(mode="json")


@pytest.mark.parametrize("rate", [WIDE, NARROW])
def test_a_fixed_rate_leaves_one_branch_and_its_outputs(
    detector: Path, rate: int, tmp_path: Path
) -> None:
    path, facts = exported(detector, tmp_path / "made", fixed_inputs={"sr": rate})
    model = onnx.load(str(path))
    assert [value.name for value in model.graph.input] == ["x"]
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Relu", "MatMul"]
    assert facts["parameters"] == 16 * 8 + 8 * 4
    x = normal(3, 16)
    expected = OrtModel(detector).run({"x": x, "sr": np.array(rate)})
    np.testing.assert_allclose(OrtModel(path).run({"x": x})["y"], expected["y"], rtol=1e-5)


def test_an_engine_of_a_fixed_input_computes_in_fp16_what_an_if_hid(
    detector: Path, tmp_path: Path
) -> None:
    source = runner.Source(
        name="detector", path=detector, format="onnx", samples={"x": normal(32, 16)}
    )
    [one] = runner.build(
        source,
        precisions=[Precision.FP16],
        gpus=["sm_89"],
        folder=tmp_path,
        fixed_inputs={"sr": WIDE},
    )
    assert one.error is None, one.error
    assert one.facts["compute"]["types"] == {"fp16": {"layers": 2, "share": 1.0}}
    assert one.accuracy.cosine_mean > 0.9999


class Scaled(nn.Module):
    """Multiplies by a scale that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.a(x) * scale


class Rated(nn.Module):
    """Computes with other weights at another rate, which isn't a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 8)
        self.narrow = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, sr: int) -> torch.Tensor:
        if sr == 16000:
            return self.wide(x)
        return self.narrow(x).relu()


@pytest.mark.heavy
def test_a_program_has_its_fixed_input_folded_in(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module, path = Scaled().eval(), tmp_path / "scaled.pt2"
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(
        module,
        (torch.zeros(2, 16), torch.tensor(1.0)),
        dynamic_shapes={"x": {0: batch}, "scale": {}},
    )
    torch.export.save(program, path)
    made, facts = exported(path, tmp_path / "made", "pt2", fixed_inputs={"scale": 2.5})
    assert [spec["name"] for spec in facts["inputs"]] == ["x"]
    x = normal(3, 16)
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.tensor(2.5)).numpy()
    np.testing.assert_allclose(OrtModel(made).run({"x": x})["output"], expected, atol=1e-5)
    source = runner.Source(name="s", path=path, format="pt2", samples={"x": normal(16, 16)})
    for one in runner.build(
        source,
        precisions=[Precision.FP32],
        gpus=["cpu", "torchscript:cpu"],
        folder=tmp_path,
        fixed_inputs={"scale": 2.5},
    ):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.9999
        assert one.accuracy.max_abs_error < 1e-4


@pytest.mark.parametrize("rate", [WIDE, NARROW])
def test_a_number_that_torchscript_takes_is_fixed(rate: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module, path = Rated().eval(), tmp_path / "rated.pt"
    torch.jit.save(torch.jit.script(module), str(path))
    profile = {"x": ShapeRange(min=(1, 16), opt=(4, 16), max=(8, 16))}
    with pytest.raises(InvalidModel) as caught:
        exported(path, tmp_path / "refused", "torchscript", profiles=[profile])
    assert caught.value.hint == "fix it to one value: --fix sr=VALUE"
    made, facts = exported(
        path, tmp_path / "made", "torchscript", profiles=[profile], fixed_inputs={"sr": rate}
    )
    assert [spec["name"] for spec in facts["inputs"]] == ["x"]
    assert facts["parameters"] < 2 * (16 * 8 + 8)
    x = normal(3, 16)
    with torch.no_grad():
        expected = module(torch.from_numpy(x), rate).numpy()
    np.testing.assert_allclose(OrtModel(made).run({"x": x})["output"], expected, atol=1e-5)


SPECS = [
    TensorSpec(name="x", dtype="float32", shape=("batch", 16)),
    TensorSpec(name="sr", dtype="int64", shape=()),
    TensorSpec(name="size", dtype="int32", shape=(2,)),
    TensorSpec(name="on", dtype="bool", shape=(1,)),
]


def test_values_get_the_types_and_shapes_of_their_inputs() -> None:
    found = fixing.values({"sr": 16000, "size": [640, 480], "on": True}, SPECS)
    assert found["sr"].dtype == np.int64
    assert found["sr"].shape == ()
    np.testing.assert_array_equal(found["size"], np.array([640, 480], np.int32))
    np.testing.assert_array_equal(found["on"], np.array([True]))
    np.testing.assert_array_equal(fixing.values({"size": 64}, SPECS)["size"], [64, 64])


@pytest.mark.parametrize(
    ("fixed", "reason"),
    [
        ({"rate": 1}, "has no input 'rate'"),
        ({"sr": 0.5}, "takes int64, but 0.5"),
        ({"sr": True}, "takes int64, but True"),
        ({"size": 2**40}, "takes int32"),
        ({"size": [1, 2, 3]}, r"has the shape \[2\], but the value \[3\]"),
        ({"x": 1.0}, r"has the shape \[batch, 16\]"),
        ({"x": [[0.0] * 16], "sr": 1, "size": 1, "on": True}, "all inputs of the model are fixed"),
    ],
    ids=str,
)
def test_a_value_that_cant_be_the_inputs_is_refused(fixed: dict[str, Any], reason: str) -> None:
    with pytest.raises(FixedInputRefused, match=reason) as caught:
        fixing.values(fixed, SPECS)
    assert caught.value.hint


def test_data_may_hold_a_fixed_input_with_its_value_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x = normal(4, 16)
    for same in (np.array(WIDE), np.full(4, WIDE)):
        np.savez(path, x=x, sr=same)
        assert list(read_samples(path, {"sr": WIDE})) == ["x"]
    np.savez(path, x=x, sr=np.array([WIDE, WIDE, WIDE, NARROW]))
    with pytest.raises(InvalidData, match="'sr' is fixed to 16000, but the data has other values"):
        read_samples(path, {"sr": WIDE})


def request(**fields: Any) -> BuildRequest:
    source = {"digest": f"sha256:{'0' * 64}", "format": "onnx"}
    return BuildRequest.model_validate(
        {"model": "m", "source": source, "precisions": ["fp32"], "targets": ["cpu"]} | fields
    )


@pytest.mark.parametrize(
    "value",
    ["16000", None, {"a": 1}, [[1], [1, 2]], [0.0] * 5000, float("nan"), 2**70, [[]] * 3 + [1]],
    ids=lambda value: str(value)[:20],
)
def test_a_request_takes_numbers_and_rectangles_of_them(value: Any) -> None:
    with pytest.raises(ValidationError):
        request(fixed_inputs={"sr": value})


def test_an_input_is_fixed_or_has_a_profile() -> None:
    assert request(fixed_inputs={"k": [[1, 2], [3, 4]]}).fixed_inputs == {"k": [[1, 2], [3, 4]]}
    with pytest.raises(ValidationError, match="sr: a fixed input has no profile"):
        request(fixed_inputs={"sr": 1}, profiles=[{"sr": {"min": [1], "opt": [1], "max": [1]}}])


def test_the_command_line_reads_numbers_truths_and_lists() -> None:
    given: Sequence[str] = ["sr=16000", "on=true", "size=[640, 480]", "a=b=0.5"]
    assert fixed_inputs(given) == {"sr": 16000, "on": True, "size": [640, 480], "a=b": 0.5}
    for wrong in ("sr", "=1", "sr=", "sr=fast", "sr=null"):
        with pytest.raises(InvalidRequest, match="isn't a fixed input"):
            fixed_inputs([wrong])
    with pytest.raises(InvalidRequest, match="sr is fixed twice"):
        fixed_inputs(["sr=1", "sr=2"])


def test_an_input_with_a_default_can_be_fixed_to_another_value(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.float32(3), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    made = fixing.fixed_model(model, {"k": 2})
    assert [spec.name for spec in interface.input_specs(made)] == ["x"]
    path = tmp_path / "m.onnx"
    onnx.save(made, str(path))
    found = OrtModel(path).run({"x": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(found["y"], [[2, 2]])
