"""The table of what stays in floats: each rule leaves the right products, and facts say which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from farm.stages import CalibrateParams
from tests.graphs import small_graph
from tests.stage_bench import Bench, save_npz
from workers.graphs import walk
from workers.quantize import rules

PADS = {"pads": [1, 1, 1, 1]}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def left(bench: Bench, source: Path, folder: Path, *shape: int) -> dict[str, list[str]]:
    data = save_npz(folder / "x.npz", x=np.random.default_rng(1).random((24, *shape), np.float32))
    made = bench.run(CalibrateParams(method="max"), onnx=source, calibration=data)
    return made.facts["left_in_float"]


@pytest.mark.parametrize(
    ("columns", "rule"), [(8, rules.SMALL), (15, rules.SMALL), (1, rules.VECTOR), (16, None)]
)
def test_matrix_products_below_sixteen_columns_stay_in_floats(
    columns: int, rule: rules.Rule | None, bench: Bench, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["a"], name="wide"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "last"], ["y"], name="last"),
    ]
    weights = {"wide": normal(32, 32), "last": normal(32, columns)}
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 32), weights=weights)
    assert left(bench, source, tmp_path, 32) == ({rule.name: ["last"]} if rule else {})


@pytest.mark.parametrize(("channels", "is_left"), [(12, True), (16, False)])
def test_narrow_convolutions_stay_in_floats(
    channels: int, is_left: bool, bench: Bench, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="first", **PADS),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "b"], ["y"], name="last", **PADS),
    ]
    weights = {"a": normal(16, 16, 3, 3), "b": normal(channels + 1 if is_left else 16, 16, 3, 3)}
    weights["b"] = normal(channels, 16, 3, 3) if not is_left else normal(12, 12, 3, 3)
    if is_left:
        weights["a"] = normal(12, 16, 3, 3)
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 16, 8, 8), weights=weights)
    found = left(bench, source, tmp_path, 16, 8, 8).get(rules.NARROW.name, [])
    assert ("last" in found) is is_left


def detector(folder: Path, *, heads: int) -> Path:
    """A trunk of three convolutions and small heads, joined as boxes and scores are."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h1"], name="trunk1", **PADS),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "b"], ["h2"], name="trunk2", **PADS),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "c"], ["h3"], name="trunk3", **PADS),
        helper.make_node("Relu", ["h3"], ["r3"], name="relu3"),
    ]
    weights = {name: normal(32, 32, 3, 3) for name in "abc"}
    for n in range(heads):
        weights[f"w{n}"] = normal(16, 32, 1, 1)
        nodes.append(helper.make_node("Conv", ["r3", f"w{n}"], [f"o{n}"], name=f"head{n}"))
    nodes.append(helper.make_node("Concat", [f"o{n}" for n in range(heads)], ["y"], axis=1))
    return small_graph(folder / "d.onnx", *nodes, shape=("n", 32, 16, 16), weights=weights)


def test_light_heads_of_a_detector_stay_in_floats(bench: Bench, tmp_path: Path) -> None:
    source = detector(tmp_path, heads=2)
    assert left(bench, source, tmp_path, 32, 16, 16) == {rules.HEAD.name: ["head0", "head1"]}


def test_neither_a_single_last_convolution_nor_heavy_ones_are_heads(
    bench: Bench, tmp_path: Path
) -> None:
    for heads in (1, 6):
        source = detector(tmp_path, heads=heads)
        assert left(bench, source, tmp_path, 32, 16, 16) == {}


def test_what_only_a_head_took_is_quantised_no_more(tmp_path: Path) -> None:
    model = onnx.load(str(detector(tmp_path, heads=2)))
    one = helper.make_node("QuantizeLinear", ["r3", "scale"], ["q"])
    other = helper.make_node("DequantizeLinear", ["q", "scale"], ["d"])
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]))
    at = next(i for i, node in enumerate(model.graph.node) if node.name == "relu3") + 1
    model.graph.node.insert(at, other)
    model.graph.node.insert(at, one)
    for node in model.graph.node:
        if node.name.startswith("head"):
            node.input[0] = "d"
    assert rules.without_heads(model, {"x": (2, 32, 16, 16)}) == ("head1", "head0")
    assert walk.qdq_pairs(model) == 0
    onnx.checker.check_model(model, full_check=True)


def test_products_in_bodies_recurrent_ones_and_computed_weights_are_told_apart() -> None:
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["inside"], name="inner")],
        "body",
        [],
        [value("inside", "n", 32)],
    )
    nodes = [
        helper.make_node("If", ["is"], ["y"], then_branch=body, else_branch=body, name="if"),
        helper.make_node("Conv", ["image", "kernel"], ["z"], name="dynamic"),
        helper.make_node("RNN", ["steps", "wi", "wr"], ["s"], hidden_size=4, name="rnn"),
    ]
    weights = {"w": normal(32, 32), "wi": normal(1, 4, 8), "wr": normal(1, 4, 4)}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            value("x", "n", 32),
            helper.make_tensor_value_info("is", TensorProto.BOOL, []),
            value("image", 1, 16, 8, 8),
            value("kernel", "o", "i", "h", "w"),
            value("steps", 5, 1, 8),
        ],
        [value("y", "n", 32), value("z", "a", "b", "c", "d"), value("s", 5, 1, 1, 4)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    assert rules.left_in_float(model) == {
        rules.BODY.name: ["inner", "inner"],
        rules.RECURRENCE.name: ["rnn"],
        rules.NOT_CONSTANT.name: ["dynamic"],
    }


def test_every_rule_names_its_source_once() -> None:
    assert len({rule.name for rule in rules.RULES}) == len(rules.RULES) == 9
    assert all(rule.what and rule.by and rule.source for rule in rules.RULES)
    assert {rule.by for rule in rules.RULES} == {"ModelOpt", "the farm", "TensorRT-RTX"}
