"""Optimization profiles: what fits a model, and what stands in where none is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.errors import ProfileMismatch
from farm.specs.shapes import ShapeRange
from farm.stages import BuildParams, ExportParams
from tests.graphs import matmul, small_graph
from tests.stage_bench import CPU, Bench, Digits


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"picture": ShapeRange(min=(1, 1, 8, 8), opt=(1, 1, 8, 8), max=(1, 1, 8, 8))}, "picture"),
        ({"image": ShapeRange(min=(1, 64), opt=(8, 64), max=(8, 64))}, "4 axes"),
        ({"image": ShapeRange(min=(1, 1, 8, 8), opt=(1, 1, 9, 8), max=(1, 1, 9, 8))}, "axis 2"),
    ],
)
def test_a_profile_that_does_not_fit_names_what_is_wrong(
    profile: dict[str, ShapeRange], told: str, bench: Bench, digits: Digits
) -> None:
    params = BuildParams(
        target=CPU, compute_capability="cpu", precision="fp32", profiles=(profile,)
    )
    assert told in bench.fails(ProfileMismatch, params, typed=digits.onnx).detail


def test_an_unknown_input_is_answered_with_the_known_ones(bench: Bench, digits: Digits) -> None:
    shapes = ShapeRange(min=(1,), opt=(1,), max=(1,))
    params = ExportParams(format="pt2", profiles=({"picture": shapes},))
    assert "image" in (bench.fails(ProfileMismatch, params, source=digits.source).hint or "")


def test_a_dynamic_axis_needs_a_profile(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "sequence.onnx", shape=("n", "length"))
    error = bench.fails(ProfileMismatch, ExportParams(format="onnx"), source=source)
    assert "axis 1 of input 'x'" in error.detail


def test_a_dynamic_batch_has_a_default_profile(bench: Bench, digits: Digits) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="fp32")
    (profile,) = bench.run(params, typed=digits.onnx).facts["profiles"]
    assert [profile["image"][size][0] for size in ("min", "opt", "max")] == [1, 8, 64]


def test_a_static_model_has_its_own_shape(bench: Bench, tmp_path: Path) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="fp32")
    typed = matmul(tmp_path / "static.onnx", shape=(3, 4))
    (profile,) = bench.run(params, typed=typed).facts["profiles"]
    assert profile["x"]["min"] == profile["x"]["max"] == [3, 4]
