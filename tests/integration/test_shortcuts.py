"""ModelOpt's shortcuts: it places Q/DQ as it does without them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from modelopt.onnx.quantization import graph_utils
from onnx import helper

from farm.errors import CalibrationFailed
from farm.specs.precision import Precision
from tests.graphs import small_graph
from workers.quantize import modelopt, placement, shortcuts

SMALL, CUT = ("n", 32), ("n", 32, 6, 6)


@pytest.fixture(name="sessions")
def _sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What ModelOpt makes sessions of for the shapes of products."""
    made: list[object] = []
    create = graph_utils.create_inference_session

    def created(model, *given):
        made.append(model)
        return create(model, *given)

    monkeypatch.setattr(graph_utils, "create_inference_session", created)
    return made


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def placed_both_ways(
    source: Path, first: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[bytes, bytes, placement.Placement]:
    """The graph with shortcuts and without, every activation's scale 1; and where both have Q/DQ."""

    def made(name: str) -> tuple[onnx.ModelProto, placement.Placement]:
        (folder / name).mkdir()
        model = onnx.load(str(source))
        graph = modelopt.placed(model, {"x": first}, Precision.INT8, folder / name)
        where = placement.placed(graph)
        placement.rescale(graph, dict.fromkeys(where.tensors, np.float32(1)))
        return graph, where

    quick, where = made("quick")
    monkeypatch.setattr(shortcuts, "taken", nullcontext)
    slow, expected = made("slow")
    assert where == expected
    return as_bytes(quick), as_bytes(slow), where


def as_bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("channels", [[0.0, 1.0, -3.0], [1e-45, 1.5e-38, 3e38], [-0.0, 0.0, 2.0]])
def test_scales_of_weights_are_those_of_onnx_runtime_to_the_bit(tmp_path, monkeypatch, channels):
    of_all = np.random.default_rng(0).uniform(-1, 1, (48, 16, 3, 3)).astype(np.float32)
    weights = {"w": of_all * np.resize(np.float32(channels), (48, 1, 1, 1))}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    source = small_graph(tmp_path / "m.onnx", node, shape=("n", 16, 8, 8), weights=weights)
    quick, slow, _ = placed_both_ways(source, random(1, 2, 16, 8, 8), tmp_path, monkeypatch)
    assert quick == slow


def test_what_a_concat_joins_is_joined_though_no_range_is_known(tmp_path, monkeypatch):
    weights = {n: random(at, 32, 32, 3, 3) for at, n in enumerate(("wa", "wb", "wd"))}
    weights["wc"] = random(4, 32, 64, 3, 3)
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], name="a", **pads),
        helper.make_node("Relu", ["a"], ["ra"], name="ra"),
        helper.make_node("Conv", ["x", "wb"], ["b"], name="b", **pads),
        helper.make_node("Relu", ["b"], ["rb"], name="rb"),
        helper.make_node("Conv", ["ra", "wd"], ["d"], name="d", **pads),
        helper.make_node("Concat", ["ra", "rb"], ["c"], name="c", axis=1),
        helper.make_node("Conv", ["c", "wc"], ["f"], name="f", **pads),
        helper.make_node("Add", ["d", "f"], ["y"], name="g"),
    ]
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=CUT, weights=weights)
    quick, slow, where = placed_both_ways(source, random(1, 2, *CUT[1:]), tmp_path, monkeypatch)
    assert quick == slow
    assert ("ra", "c") in where.groups


def products(folder: Path) -> Path:
    """Three products, the last one too narrow to quantise."""
    weights = {"v": random(0, 32, 64), "w": random(1, 64, 32), "z": random(2, 32, 8)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["b"], name="b"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="c"),
        helper.make_node("MatMul", ["c", "z"], ["y"], name="y"),
    ]
    return small_graph(folder / "m.onnx", *nodes, shape=SMALL, weights=weights)


def test_products_are_left_out_by_shapes_without_a_run(tmp_path, monkeypatch, sessions):
    source = products(tmp_path)
    model = onnx.load(str(source))
    modelopt.placed(model, {"x": random(3, 2, 32)}, Precision.INT8, tmp_path)
    assert sessions == []
    quick, slow, where = placed_both_ways(source, random(3, 2, 32), tmp_path, monkeypatch)
    assert quick == slow
    assert sessions
    assert set(where.tensors) == {"x", "b"}


def test_a_product_with_a_vector_is_told_by_the_batch(tmp_path, sessions):
    model = onnx.load(str(products(tmp_path)))
    with pytest.raises(CalibrationFailed, match="no convolution or matrix product"):
        modelopt.placed(model, {"x": random(3, 1, 32)}, Precision.INT8, tmp_path)
    assert sessions == []


def test_the_model_runs_where_shapes_depend_on_values(tmp_path, sessions):
    weights = {"zero": np.zeros(1, np.float32), "v": random(0, 32, 64), "axis": np.array([1])}
    nodes = [
        helper.make_node("ReduceMax", ["x", "axis"], ["m"], name="m", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["is"], name="is"),
        helper.make_node("Compress", ["x", "is"], ["some"], name="some", axis=0),
        helper.make_node("MatMul", ["some", "v"], ["y"], name="y"),
    ]
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=SMALL, weights=weights)
    first = {"x": np.abs(random(3, 2, 32))}
    graph = modelopt.placed(onnx.load(str(source)), first, Precision.INT8, tmp_path)
    assert len(sessions) == 1
    assert "some" in placement.placed(graph).tensors
