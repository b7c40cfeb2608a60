"""The export stage: PyTorch programs become ONNX, ONNX is checked and brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farm.errors import ExportDiverged, InvalidModel
from farm.stages import CalibrateParams, CastParams, ExportParams
from tests.graphs import matmul, small_graph
from tests.stage_bench import Bench, Digits, batch_profile, rtx, save_npz
from workers import demo
from workers.graphs.standard import MIN_OPSET
from workers.stages.export import exporter


def test_export_keeps_the_batch_dynamic_and_the_names(digits: Digits) -> None:
    facts = digits.exported.facts
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert facts["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]
    assert facts["opset"] >= 19
    assert facts["parameters"] > 10_000


def test_export_checks_two_batch_sizes_against_pytorch(digits: Digits) -> None:
    check = digits.exported.facts["check"]
    assert len(set(check["batches"])) == 2
    assert 0 <= check["max_abs_error"] < 1e-3


def test_export_checks_within_the_profile(bench: Bench, digits: Digits) -> None:
    params = ExportParams(format="pt2", profiles=(batch_profile(3, 5, 6),))
    check = bench.run(params, source=digits.source).facts["check"]
    assert all(3 <= batch <= 6 for batch in check["batches"])
    assert len(check["batches"]) == 2


def test_export_refuses_a_graph_that_diverges(
    bench: Bench, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_onnx = exporter.to_onnx

    def wrong(program: Any) -> onnx.ModelProto:
        model = to_onnx(program)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        array = numpy_helper.to_array(weight) * np.float32(1.1)
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        return model

    monkeypatch.setattr(exporter, "to_onnx", wrong)
    error = bench.fails(ExportDiverged, ExportParams(format="pt2"), source=digits.source)
    assert "differ" in error.detail


class BiasedAttention(torch.nn.Module):
    """Attention with a bias by position that all of a batch share, as that of T5."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Embedding(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(x.shape[0], 4, 2, 8).transpose(1, 2)
        distances = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        bias = self.bias(distances).permute(2, 0, 1).unsqueeze(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            heads, heads, heads, attn_mask=bias
        )
        return mixed.transpose(1, 2).reshape(x.shape)


def test_attention_with_a_shared_bias_is_exported(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "attention.pt2"
    demo.save_program(BiasedAttention().eval(), torch.randn(2, 4, 16), source)
    facts = bench.run(ExportParams(format="pt2"), source=source).facts
    assert facts["check"]["max_abs_error"] < 1e-4


def test_onnx_is_taken_as_it_is(bench: Bench, tmp_path: Path) -> None:
    source = matmul(tmp_path / "m.onnx")
    result = bench.run(ExportParams(format="onnx"), source=source)
    assert result.outputs["onnx"].read_bytes() == source.read_bytes()
    assert result.facts["inputs"][0]["shape"] == ["n", 4]


def test_old_onnx_is_upgraded_and_compared(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(ExportParams(format="onnx"), source=matmul(tmp_path / "m.onnx", opset=13))
    assert result.facts["opset"] == MIN_OPSET
    assert result.facts["check"]["max_abs_error"] < 1e-5


def light(path: Path, *, weights_are_inputs: bool, filled: bool) -> Path:
    """x·w [n,16] as years ago: weights that are inputs too, or that a ConstantOfShape makes."""
    shape = numpy_helper.from_array(np.array([16, 32]), "shape")
    weights = numpy_helper.from_array(np.full((16, 32), 0.5, np.float32), "w")
    fill = helper.make_node(
        "ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", 1, [1], [0.5])
    )
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    if weights_are_inputs:
        name, kind = ("shape", TensorProto.INT64) if filled else ("w", TensorProto.FLOAT)
        given.append(helper.make_tensor_value_info(name, kind, [2] if filled else [16, 32]))
    graph = helper.make_graph(
        [*([fill] if filled else []), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "light",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [shape if filled else weights],
    )
    opset = [helper.make_opsetid("", 9 if weights_are_inputs else 20)]
    version = 3 if weights_are_inputs else 10
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=version), str(path))
    return path


@pytest.mark.parametrize("weights_are_inputs", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_weights_of_old_and_light_onnx_become_initializers_alone(
    weights_are_inputs: bool, filled: bool, bench: Bench, tmp_path: Path
) -> None:
    source = light(tmp_path / "m.onnx", weights_are_inputs=weights_are_inputs, filled=filled)
    exported = bench.run(ExportParams(format="onnx"), source=source).outputs["onnx"]
    graph = onnx.load(str(exported)).graph
    assert [value.name for value in graph.input] == ["x"]
    assert [tensor.name for tensor in graph.initializer] == ["w"]
    assert (exported.read_bytes() == source.read_bytes()) == (not weights_are_inputs and not filled)
    samples = save_npz(tmp_path / "c.npz", x=np.ones((16, 16), np.float32))
    typed = bench.run(CastParams(precision="fp16"), onnx=exported).outputs["typed"]
    assert bench.run(rtx("sm_89", "fp16"), typed=typed).facts["layers"] > 0
    typed = bench.run(CalibrateParams(), onnx=exported, calibration=samples).outputs["typed_fp16"]
    assert bench.run(rtx("sm_89", "int8"), typed=typed).facts["compute"]["types"].keys() == {"int8"}


@pytest.mark.parametrize("size", [2**40, -1])
def test_a_graph_that_would_fill_the_memory_is_refused(
    size: int, bench: Bench, tmp_path: Path
) -> None:
    shape = np.array([size, 1])
    fill = helper.make_node("ConstantOfShape", ["shape"], ["w"])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    source = small_graph(tmp_path / "m.onnx", fill, add, weights={"shape": shape}, opset=13)
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert error.detail


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty"), (b"\x00\x01garbage", "readable"), (b"PK\x03\x04", "read")]
)
def test_a_file_that_is_no_onnx_is_refused(
    content: bytes, told: str, bench: Bench, tmp_path: Path
) -> None:
    source = tmp_path / "bad.onnx"
    source.write_bytes(content)
    assert told in bench.fails(InvalidModel, ExportParams(format="onnx"), source=source).detail


def test_truncated_onnx_is_refused(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    source = tmp_path / "half.onnx"
    source.write_bytes(digits.onnx.read_bytes()[:-2000])
    bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)


def test_a_custom_operator_is_named_with_its_domain(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("MagicBlend", ["x"], ["y"], domain="acme")
    source = small_graph(tmp_path / "custom.onnx", node)
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "MagicBlend" in error.detail
    assert "acme" in error.detail


def test_an_unknown_standard_operator_is_named(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "typo.onnx", helper.make_node("Rellu", ["x"], ["y"]))
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "Rellu" in error.detail


def test_a_graph_that_contradicts_itself_is_refused(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.zeros((5, 8), np.float32)}
    source = small_graph(tmp_path / "shapes.onnx", node, weights=weights)
    bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)


def test_weights_in_another_file_are_refused(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(str(matmul(tmp_path / "m.onnx")))
    source = tmp_path / "split.onnx"
    onnx.save(
        model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "'weights.bin', which wasn't submitted with it" in error.detail


def test_functions_of_the_model_are_inlined(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(
        tmp_path / "f.onnx", helper.make_node("Twice", ["x"], ["y"], domain="acme")
    )
    model = onnx.load(str(source))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("acme", "Twice", ["a"], ["b"], body, opset))
    onnx.save(model, str(source))
    result = bench.run(ExportParams(format="onnx"), source=source)
    assert [node.op_type for node in onnx.load(str(result.outputs["onnx"])).graph.node] == ["Add"]


def test_a_batch_that_is_fixed_inside_the_model_is_noticed(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    source = small_graph(
        tmp_path / "fixed.onnx", node, weights={"shape": np.array([1, 4], np.int64)}
    )
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "shapes" in error.detail
