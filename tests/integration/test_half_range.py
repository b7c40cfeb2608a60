"""What fp16 can't hold stays in fp32, or becomes bf16 where the GPU has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from farm.errors import CastFailed
from farm.specs.source import DataKind
from tests.typed_graphs import (
    BF,
    F,
    H,
    all_right,
    build,
    graph,
    model,
    node,
    noise,
    norm,
    pixels,
    random,
    value,
)
from workers.backends.ort.cpu import OrtModel
from workers.graphs import casting
from workers.graphs.normal import normalised
from workers.graphs.rounding import rounded_model
from workers.quantize import choosing
from workers.quantize.magnitudes import measured


@pytest.mark.parametrize("summed", [False, True])
def test_a_norm_of_pixels_is_right_in_fp16_and_in_the_remainder_of_int8(
    summed: bool, tmp_path: Path
) -> None:
    samples = {"x": pixels()}
    built = build(tmp_path, norm(summed), samples, ["fp16", "int8"], ["sm_75", "sm_89"])
    all_right(built, 0.999)
    facts = built["fp16", "sm_89"].results["cast"].facts
    assert facts["data"] == "calibration"
    assert facts["kept_in_fp32"]["its values leave the range"] >= 3
    assert facts["low_precision_nodes"] > facts["float_nodes"] / 2
    remainder = built["int8", "sm_89"].results["calibrate"].facts["remainder_nodes"]
    assert remainder["fp32"] >= 3
    assert remainder["fp16"] > remainder["fp32"]


def test_fp16_is_right_on_pixels_though_its_types_were_chosen_on_noise(tmp_path: Path) -> None:
    wide = normalised(norm())
    seen = [{"x": np.random.default_rng(0).uniform(-1, 1, (8, 3, 32, 32)).astype(np.float32)}]
    chosen = choosing.choose(wide, measured(wide, seen, tmp_path), H, DataKind.RANDOM)
    rounded = rounded_model(casting.typed(wide, chosen.types))
    expected, actual = (
        OrtModel(made.SerializeToString(), optimisation="none").run({"x": pixels()})["y"]
        for made in (wide, rounded)
    )
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())
    products = [n for n in wide.graph.node if n.op_type in ("Conv", "MatMul")]
    assert all(chosen.types.get(n.output[0]) == H for n in products)


def test_a_norm_of_pixels_is_right_in_fp16_on_the_cpu(tmp_path: Path) -> None:
    all_right(build(tmp_path, norm(), {"x": pixels()}, ["fp16"], ["cpu"]), 0.999)


def choose(
    made: onnx.ModelProto,
    folder: Path,
    kind: int = H,
    data: DataKind = DataKind.CALIBRATION,
    **arrays: np.ndarray,
) -> dict[str, str]:
    """Output → why its operator stays in fp32."""
    wide = normalised(made)
    return dict(choosing.choose(wide, measured(wide, [arrays], folder), kind, data).why)


def between(nodes: Sequence[onnx.NodeProto], **tensors: object) -> onnx.ModelProto:
    given = {name: np.asarray(array) for name, array in tensors.items()}
    inputs, outputs = [value("x", F, ["n", 4096])], [value("y", F, None)]
    return model(graph(nodes, inputs, outputs, given))


def test_a_sum_stays_in_fp32_whose_terms_leave_the_range_though_their_mean_fits(
    tmp_path: Path,
) -> None:
    made = between([node("ReduceMean", "x last", "y")], last=np.array([-1]))
    assert choose(made, tmp_path, x=np.full((2, 4096), 2, np.float32)) == {}
    assert "range" in choose(made, tmp_path, x=np.full((2, 4096), 9, np.float32))["y"]


def test_an_epsilon_that_fp16_rounds_to_zero_stays_until_the_division(tmp_path: Path) -> None:
    nodes = [
        node("ReduceL2", "x last", "length"),
        node("Clip", "length eps", "held"),
        node("Expand", "held shape", "wide"),
        node("Div", "x wide", "y"),
    ]
    made = between(nodes, last=[-1], eps=np.float32(1e-12), shape=np.array([1, 4096]))
    kept = choose(made, tmp_path, x=noise(2, 4096))
    assert {"held", "wide", "y"} <= set(kept)


def test_the_argument_of_a_sine_keeps_its_small_parts_in_bf16_too(tmp_path: Path) -> None:
    nodes = [node("Mul", "x step", "angle"), node("Cos", "angle", "y")]
    made = between(nodes, step=np.float32(0.7))
    for kind in (H, BF):
        kept = choose(made, tmp_path, kind, x=np.arange(8192, dtype=np.float32).reshape(2, -1))
        assert set(kept) == {"angle", "y"}
    assert choose(made, tmp_path, x=noise(2, 4096) / 8) == {}


def test_there_is_room_for_other_data_than_those_at_hand(tmp_path: Path) -> None:
    made = between([node("Mul", "x up", "y")], up=np.float32(100))
    data = np.zeros((2, 4096), np.float32)
    data[0, 0] = 100
    assert choose(made, tmp_path, x=data) == {}
    data[0, 0] = 400  # 40,000 fits, and twice as much doesn't
    assert "y" in choose(made, tmp_path, x=data)
    data[0, 0] = 10  # of noise nothing follows for pixels
    assert "y" in choose(made, tmp_path, data=DataKind.RANDOM, x=data)


def test_bf16_is_named_where_it_serves_and_fp16_does_not(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "y")]
    tensors = {"w": random(16, 8) * 1e5}
    made = model(graph(nodes, [value("x", F, ["n", 16])], [value("y", F, ["n", 8])], tensors))
    built = build(tmp_path, made, {"x": noise(32, 16)}, ["fp16", "bf16"], ["sm_89"])
    error = built["fp16", "sm_89"].error
    assert isinstance(error, CastFailed)
    assert "choose bf16" in (error.hint or "")
    assert built["bf16", "sm_89"].error is None
    assert built["bf16", "sm_89"].accuracy.cosine_min > 0.999


def test_a_product_that_leaves_fp16_is_bf16_in_the_remainder_where_the_gpu_has_it(
    tmp_path: Path,
) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Mul", "f up", "large"),
        node("MatMul", "large t", "z"),
        node("MatMul", "z k", "large_y"),
        node("Mul", "large_y down", "y"),
    ]
    tensors = {
        "w": random(16, 3, 3, 3),
        "t": random(16, 1),
        "k": random(1, 8),
        "up": np.float32(1e6),
        "down": np.float32(1e-6),
    }
    inputs = [value("x", F, ["n", 3, 8, 8])]
    made = model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))
    built = build(tmp_path, made, {"x": noise(32, 3, 8, 8)}, ["int8"], ["sm_75", "sm_89"])
    assert built["int8", "sm_89"].error is None
    assert built["int8", "sm_89"].accuracy.cosine_min > 0.99
    facts = built["int8", "sm_89"].results["calibrate"].facts
    assert facts["remainder_nodes"]["bf16"] >= 1
