"""The cast stage: a graph in half precision, with its interface as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from farm.errors import CastFailed
from farm.stages import CastParams
from tests.graphs import small_graph
from tests.stage_bench import Bench, Digits


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cast_really_casts_and_keeps_io_fp32(precision: str, bench: Bench, digits: Digits) -> None:
    result = bench.run(CastParams(precision=precision), onnx=digits.onnx)
    facts = result.facts
    assert facts["share"] > 0.9
    assert {spec["dtype"] for spec in [*facts["inputs"], *facts["outputs"]]} == {"float32"}
    assert facts["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    typed = result.outputs["typed"]
    assert typed.stat().st_size < 0.7 * digits.onnx.stat().st_size


def test_cast_takes_a_graph_of_the_asked_type_as_it_is(bench: Bench, digits: Digits) -> None:
    fp16 = digits.fp16.outputs["typed"]
    made = bench.run(CastParams(precision="fp16"), onnx=fp16)
    assert "float16" in made.facts["own_types"]
    assert onnx.load(str(made.outputs["typed"])) == onnx.load(str(fp16))


def test_cast_keeps_in_fp32_what_fp16_cannot_hold(bench: Bench, tmp_path: Path) -> None:
    weights = {"w": np.full((4, 4), 1e6, np.float32)}
    typed = small_graph(
        tmp_path / "large.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]), weights=weights
    )
    error = bench.fails(CastFailed, CastParams(precision="fp16"), onnx=typed)
    assert "fp32" in (error.hint or "")
