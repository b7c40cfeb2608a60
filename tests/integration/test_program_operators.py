"""A ``.pt2`` calls listed operators alone, and none of its texts becomes code or work without end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from farm.errors import InvalidModel
from tests.integration.test_stage_sources import edit_json, edited, keep
from workers.programs.eager import EagerModel
from workers.programs.expressions import check_expression
from workers.programs.load import load_program
from workers.programs.operators import GUARDED, may_call

MODEL = "models/model.json"


def program(path: Path, module: nn.Module, *arguments: Tensor, **named: Tensor) -> Path:
    torch.export.save(torch.export.export(module.eval(), arguments, named), path)
    return path


class Adds(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    return edited(source, target, edit_json(MODEL, change))


def refused(path: Path) -> InvalidModel:
    with pytest.raises(InvalidModel) as caught:
        EagerModel(load_program(path))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "target",
    """
    aten._sparse_coo_tensor_unsafe.default aten._sparse_csr_tensor_unsafe.default
    aten._reshape_alias.default aten.set_.source_Storage aten.resize_.default aten.from_file.default
    aten.native_batch_norm.default aten.ctc_loss.IntList aten.add.out aten.add
    aten.max_pool2d_with_indices_backward.default inductor._reinterpret_tensor.default
    inductor._alloc_from_pool.default prims.resize.default quantized.linear.default
    torchvision.roi_align.default c10d.send.default higher_order.triton_kernel_wrapper_functional
    """.split(),
)
def test_an_operator_that_is_not_listed_is_refused(target: str, tmp_path: Path) -> None:
    honest = program(tmp_path / "honest.pt2", Adds(), torch.ones(2), torch.ones(2))

    def replace(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = f"torch.ops.{target}"

    error = refused(changed(honest, tmp_path / "m.pt2", replace))
    assert f"torch.ops.{target}"[:80] in error.detail


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def test_an_operator_in_a_branch_is_refused(tmp_path: Path) -> None:
    honest = program(tmp_path / "honest.pt2", Branches(), torch.ones(2))
    EagerModel(load_program(honest)).run({"x": np.ones(2, np.float32)})

    def replace(name: str, content: bytes) -> bytes:
        assert name != MODEL or b"torch.ops.aten.cos.default" in content
        return content.replace(b"torch.ops.aten.cos.default", b"torch.ops.aten.set_.default")

    assert "aten.set_" in refused(edited(honest, tmp_path / "m.pt2", replace)).detail


@pytest.mark.parametrize(
    "name", ["y=print(1)", "y):\n  pass\nprint(1)\n#", "y z", "lambda", "1y", "y-"]
)
@pytest.mark.parametrize("by", ["keyword", "position"])
def test_an_argument_whose_name_is_code_is_refused(name: str, by: str, tmp_path: Path) -> None:
    """torch writes the names of arguments into the function that it compiles."""
    honest = program(tmp_path / "honest.pt2", Adds(), torch.ones(2), y=torch.ones(2))

    def replace(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        if by == "position":
            signature["forward_arg_names"] = ["x", name]
            return
        spec = json.loads(signature["in_spec"])
        assert json.loads(spec[1]["children_spec"][1]["context"]) == ["y"]
        spec[1]["children_spec"][1]["context"] = json.dumps([name])
        signature["in_spec"] = json.dumps(spec)
        signature["forward_arg_names"] = None

    error = refused(changed(honest, tmp_path / "m.pt2", replace))
    assert "isn't a name that an input may have" in error.detail


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "Pow(9, 99999999)",
        "Pow(Pow(Pow(9, 64), 64), 64)",
        "LShift(1, 9999999999)",
        "1 << 9999999999",
        "PowByNatural(base=9, exp=999999999)",
        "Pow(9, Mul(9, 9))",
        f"Integer({'9' * 40})",
        "u99999999999",
        "(" * 300 + "1" + ")" * 300,
        "+".join(["s0"] * 3000),
        "__import__('os').system('id')",
        "s0.__class__",
        "s0[0]",
        "lambda: s0",
        "Symbol('s0', **{})",
    ],
)
def test_a_size_that_is_no_arithmetic_or_has_no_end_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidModel, match="symbolic size"):
        check_expression(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "Symbol('s77', positive=True, integer=True)",
        "2*s0 + 1",
        "Mul(Integer(8), Symbol('s0'))",
        "Pow(Symbol('s0'), Integer(2))",
        "Pow(Symbol('s0'), Integer(-1))",
        "FloorDiv(s0 - 1, 2) + 1",
        "Max(1, Mod(s0, 4))",
        "u0",
        "s0**2",
        "Pow(s0, Rational(1, 2))",
    ],
)
def test_a_size_that_torch_writes_is_taken(text: str) -> None:
    check_expression(text)


def test_records_whose_names_differ_by_case_are_refused(tmp_path: Path) -> None:
    honest = program(tmp_path / "honest.pt2", Adds(), torch.ones(2), torch.ones(2))
    twice = edited(honest, tmp_path / "m.pt2", keep, {"MODELS/model.json": b"{}"})
    assert "two records of one name" in refused(twice).detail


def test_a_program_nested_without_end_is_refused(tmp_path: Path) -> None:
    honest = program(tmp_path / "honest.pt2", Adds(), torch.ones(2), torch.ones(2))

    def replace(name: str, content: bytes) -> bytes:
        return b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}" if name == MODEL else content

    refused(edited(honest, tmp_path / "m.pt2", replace))


class Layers(nn.Module):
    """What decomposes to kernels that trust their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.heads = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(self.norm(x), (6, 8), mode="bilinear", antialias=True)
        x = nn.functional.scaled_dot_product_attention(x, self.heads(x), x)
        return torch.fft.rfft(x).abs()


def test_a_decomposed_program_is_taken_and_runs(tmp_path: Path) -> None:
    module = Layers().eval()
    given = torch.rand(2, 3, 8, 8)
    made = torch.export.export(module, (given,)).run_decompositions()
    names = {str(node.target) for node in made.graph.nodes if node.op == "call_function"}
    assert "aten._native_batch_norm_legit_no_training.default" in names
    torch.export.save(made, tmp_path / "m.pt2")
    found = EagerModel(load_program(tmp_path / "m.pt2")).run({"x": given.numpy()})["output"]
    with torch.no_grad():
        np.testing.assert_allclose(found, module(given).numpy(), rtol=1e-4, atol=1e-5)


class Widens(nn.Module):
    """What is looked at while it runs, and belongs together."""

    def forward(self, x: Tensor, times: Tensor) -> dict[str, Tensor]:
        interpolate = nn.functional.interpolate
        return {
            "heads": x.repeat_interleave(2, 1),
            "rows": x.repeat_interleave(times, 0, output_size=3),
            "one": x.repeat_interleave(times[:1] + 1, 0, output_size=4),
            "near": interpolate(x, scale_factor=2.0),
            "least": interpolate(x, (1, 1), mode="nearest-exact"),
            "smooth": interpolate(x, scale_factor=(0.5, 3.0), mode="bicubic"),
            "linear": interpolate(x.flatten(2), 5, mode="linear", align_corners=True),
            "deep": interpolate(x[:, None], scale_factor=1.5, mode="trilinear"),
        }


@pytest.mark.parametrize("decomposed", [False, True])
def test_honest_repeats_and_scales_are_taken(decomposed: bool, tmp_path: Path) -> None:
    given = (torch.rand(2, 3, 4, 6), torch.tensor([1, 2]))
    made = torch.export.export(Widens(), given)
    torch.export.save(made.run_decompositions() if decomposed else made, tmp_path / "m.pt2")
    arrays = {"x": given[0].numpy(), "times": given[1].numpy()}
    found = EagerModel(load_program(tmp_path / "m.pt2")).run(arrays)
    for name, expected in Widens()(*given).items():
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_repeats_whose_sum_wraps_around_are_refused_as_it_runs(tmp_path: Path) -> None:
    """The kernel would write a thousand positions into five."""
    given = (torch.rand(2, 3, 4, 6), torch.tensor([1, 2]))
    torch.export.save(torch.export.export(Widens(), given), tmp_path / "m.pt2")
    model = EagerModel(load_program(tmp_path / "m.pt2"))
    most = 2**63 - 1
    with pytest.raises(InvalidModel, match="don't belong together"):
        model.run({"x": given[0].numpy(), "times": np.array([most, most - 993])})


def test_weights_shorter_than_their_input_are_refused_as_it_runs(tmp_path: Path) -> None:
    """PyTorch's kernel reads on past them: 65,000 channels have one weight here."""
    made = torch.export.export(
        nn.BatchNorm1d(1).eval(), (torch.ones(2, 1, 4),)
    ).run_decompositions()
    torch.export.save(made, tmp_path / "honest.pt2")

    def widen(model: Any) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        for name in values:
            if len(values[name]["sizes"]) == 3:
                values[name]["sizes"][1] = {"as_int": 65_000}
                values[name]["strides"][0] = {"as_int": 65_000 * 4}

    model = EagerModel(load_program(changed(tmp_path / "honest.pt2", tmp_path / "m.pt2", widen)))
    with pytest.raises(InvalidModel, match="don't belong together"):
        model.run({"input": np.ones((2, 65_000, 4), np.float32)})


def test_what_is_guarded_may_be_called() -> None:
    for name in GUARDED:
        packet = getattr(torch.ops.aten, name)
        assert any(may_call(f"aten.{name}.{overload}") for overload in packet.overloads()), name
