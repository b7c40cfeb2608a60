"""Numbers that PyTorch takes for types, layouts and formats without a look."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from farm.errors import EngineBuildFailed, InvalidModel
from workers.backends import torchscript
from workers.backends.torchscript import TorchScriptModel
from workers.programs import enumerations, script
from workers.programs.load import load_program


def cast(x: Tensor, kind: int) -> Tensor:
    return x.to(kind)


class Literal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(77)


class Computed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(x.size(0) * 1000)


class Passed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(x, 77)


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(x, 6 if x.size(0) > 1 else -5)


class Given(nn.Module):
    def forward(self, x: Tensor, kind: int) -> Tensor:
        return torch.softmax(x, 0, kind)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kind = 77

    def forward(self, x: Tensor) -> Tensor:
        self.kind = self.kind + 1
        return torch.zeros(2, dtype=self.kind) + x


class Looped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        kind = 0
        for _ in range(x.size(0)):
            kind = kind + 50
        return torch.ones_like(x, dtype=kind)


class Format(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone(memory_format=99)


class Honest(nn.Module):
    def forward(self, x: Tensor, wide: bool) -> Tensor:
        x = cast(x, torch.float64 if wide else x.dtype)
        x = nn.functional.softmax(x, 0, dtype=torch.float32).to(memory_format=torch.preserve_format)
        return x + torch.zeros(x.size(0), dtype=x.dtype, layout=x.layout)


def saved(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))
    return path


@pytest.mark.parametrize("kind", [Literal, Computed, Passed, Chosen, Given, Kept, Looped, Format])
def test_a_number_that_may_be_no_member_is_refused_before_it_runs(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(script.Refused, match="takes a number for a"):
        script.load(saved(kind(), tmp_path / "m.pt"))


def test_types_that_pytorch_gave_or_the_code_names_are_taken(tmp_path: Path) -> None:
    module = script.load(saved(Honest(), tmp_path / "m.pt")).module
    assert module(torch.zeros(3), True).dtype is torch.float32


def test_a_program_with_a_number_for_a_type_is_refused(tmp_path: Path) -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.float64)

    program = torch.export.export(Casts(), (torch.zeros(2),))
    enumerations.check_program(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.args = tuple(77 if one is torch.float64 else one for one in node.args)
            node.kwargs = {
                name: 77 if one is torch.float64 else one for name, one in node.kwargs.items()
            }
    with pytest.raises(enumerations.Unknown, match="ScalarType"):
        enumerations.check_program(program)
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(InvalidModel):
        load_program(tmp_path / "m.pt2")


# Engines, which a job has made that had read a stranger's program


class Samples(nn.Module):
    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return nn.functional.grid_sample(x, grid, align_corners=False)


def engine_of(path: Path) -> Path:
    program = torch.export.export(Samples(), (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)))
    torchscript.build_engine(program, path)
    return path


def test_a_torchscript_engine_runs_under_the_guard_of_its_kernels(tmp_path: Path) -> None:
    engine = TorchScriptModel(engine_of(tmp_path / "engine.pt"))
    names = dict(zip(engine.input_names, [(1, 1, 4, 4), (1, 2, 2, 2)], strict=True))
    found = engine.run({name: np.zeros(shape, np.float32) for name, shape in names.items()})
    assert found["output"].shape == (1, 1, 2, 2)
    assert "grid_sampler" in engine._operators


class Wild(nn.Module):
    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return torch.grid_sampler(x, grid, 7, 9, False)


class Fills(nn.Module):
    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return torch.ops.aten._reshape_alias(x, [4, 4], [4, 1])


def engine_with(module: nn.Module, path: Path) -> Path:
    names = '{"inputs": ["x", "grid"], "outputs": ["output"]}'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path), _extra_files={torchscript.NAMES: names})
    return path


def test_an_engine_s_wild_arguments_are_refused_as_it_runs(tmp_path: Path) -> None:
    engine = TorchScriptModel(engine_with(Wild(), tmp_path / "engine.pt"))
    x = {"x": np.zeros((1, 1, 4, 4), np.float32), "grid": np.full((1, 2, 2, 2), 5, np.float32)}
    with pytest.raises(InvalidModel, match="grid_sampler"):
        engine.run(x)


def test_an_engine_that_the_farm_would_not_have_built_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildFailed, match="doesn't run this engine"):
        TorchScriptModel(engine_with(Fills(), tmp_path / "engine.pt"))
