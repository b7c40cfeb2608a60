"""A calibration that keeps an accuracy: what it tries, what it leaves in floats, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from farm.errors import AccuracyDropped, CalibrationFailed, InvalidData, LatencyMissed
from farm.specs.accuracy_goal import AccuracyGoal
from farm.stages import BuildParams, CalibrateParams
from tests.graphs import small_graph
from tests.placed import int8_graph
from tests.stage_bench import CPU, Bench, Digits, save_npz
from workers.backends.ort.cpu import OrtModel
from workers.goals import bias
from workers.goals.equalised import equalised
from workers.goals.halves import in_fp32
from workers.goals.harm import narrow
from workers.goals.toggles import Toggled
from workers.goals.units import units_of, without
from workers.graphs import walk
from workers.graphs.compute import compute_of
from workers.graphs.rounding import rounded_model
from workers.inputs.samples import Arrays

_RANDOM = np.random.default_rng(0)
_SHAPE = (8, 16, 8, 8)


def _convolutions(path: Path, *, spread: float = 1.0) -> Path:
    """Three convolutions, an addition around one, and a matrix product.

    Parameters:
        spread: up to how much larger than others a channel between convolutions is.
    """
    factors = np.geomspace(1, spread, 16).astype(np.float32)
    weights: dict[str, np.ndarray] = {
        f"w{n}": (_RANDOM.normal(0, 0.12, (16, 16, 3, 3))).astype(np.float32) for n in range(3)
    }
    weights["w0"] *= factors[:, None, None, None]
    weights["w1"] /= factors[None, :, None, None]
    weights |= {f"b{n}": _RANDOM.normal(0, 0.1, 16).astype(np.float32) for n in range(3)}
    weights["b0"] *= factors
    weights["m"] = _RANDOM.normal(0, 0.2, (16, 32)).astype(np.float32)
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first", **pads),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "w1", "b1"], ["c"], name="second", **pads),
        helper.make_node("Relu", ["c"], ["rc"]),
        helper.make_node("Conv", ["rc", "w2", "b2"], ["d"], name="third", **pads),
        helper.make_node("Add", ["d", "rc"], ["e"], name="sum"),
        helper.make_node("Relu", ["e"], ["re"]),
        helper.make_node("GlobalAveragePool", ["re"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="head"),
    ]
    return small_graph(path, *nodes, shape=("n", 16, 8, 8), weights=weights)


def _images(count: int) -> np.ndarray:
    """Noise around a level of each channel's own, by which images differ."""
    levels = _RANDOM.normal(0, 2, (count, 16, 1, 1))
    return (levels + _RANDOM.normal(0, 0.5, (count, *_SHAPE[1:]))).astype(np.float32)


def _run(model: onnx.ModelProto, batch: Arrays) -> np.ndarray:
    return np.asarray(OrtModel(model.SerializeToString()).run(batch)["y"])


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("placed")
    model = onnx.load(str(_convolutions(folder / "m.onnx")))
    return int8_graph(model, {"x": _images(8)}, folder)


def test_units_are_products_and_the_tensors_that_others_read(placed: onnx.ModelProto) -> None:
    units = units_of(placed)
    assert [unit.name for unit in units.products] == ["first", "second", "third", "head"]
    weights = {edge.tensor: edge.units for edge in units.edges if edge.is_constant}
    assert weights["w1"] == {"c"}
    # What a convolution gives is rounded by its own kernel, for whoever reads it.
    read = {edge.consumer: edge.units for edge in units.edges if edge.position == 0}
    assert read["c"] == {"a", "c"}
    assert read["a"] == {"a"}


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
def test_a_toggled_unit_gives_what_removing_the_others_gives(
    placed: onnx.ModelProto, unit: int, tmp_path: Path
) -> None:
    units = units_of(placed)
    toggled = Toggled(placed, units, tmp_path)
    batch = {"x": _images(8)}
    others = {one.id for one in units.all} - {units.products[unit].id}
    alone = _run(without(placed, units, others), batch)
    rounded, plain = (toggled.run(batch, chosen) for chosen in ([units.products[unit].id], ()))
    assert np.allclose(rounded["y"], alone, atol=1e-5)
    assert not np.allclose(alone, plain["y"], atol=1e-5)


def test_without_all_units_a_graph_is_the_source_and_with_all_it_is_as_it_was(
    placed: onnx.ModelProto, tmp_path: Path
) -> None:
    units, batch = units_of(placed), {"x": _images(8)}
    floats = without(placed, units, {unit.id for unit in units.all})
    assert not walk.is_quantized(floats)
    toggled = Toggled(placed, units, tmp_path)
    assert np.allclose(toggled.run(batch, ())["y"], _run(floats, batch), atol=1e-5)
    whole = toggled.run(batch, [unit.id for unit in units.all])["y"]
    assert np.allclose(whole, _run(placed, batch), atol=1e-5)


def test_equalised_channels_leave_the_function_and_lose_less(tmp_path: Path) -> None:
    model = onnx.load(str(_convolutions(tmp_path / "m.onnx", spread=3000)))
    batch = {"x": _images(32)}
    made = equalised(model, [batch], tmp_path)
    assert made is not None
    even, count = made
    assert count >= 1
    expected = _run(model, batch)
    assert np.allclose(_run(even, batch), expected, rtol=1e-3, atol=1e-3)
    # What has other values has another name: build stages tell it from the source's by that.
    names = {name for node in even.graph.node for name in node.output}
    assert "ra" not in names
    errors = []
    for number, graph in enumerate((model, even)):
        folder = tmp_path / str(number)
        folder.mkdir()
        quantized = int8_graph(graph, batch, folder)
        errors.append(float(np.square(_run(quantized, batch) - expected).mean()))
    assert errors[1] < errors[0] / 10


def test_a_corrected_bias_takes_the_mean_error_out_of_a_product(tmp_path: Path) -> None:
    weights = {
        # Rounding has one sign for all of them.
        "w": np.tile(np.float32([1.0, *[0.0035] * 31]), (32, 1)).T.copy(),
        "b": np.zeros(32, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
    ]
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 32), weights=weights)
    model = onnx.load(str(source))
    batch = {"x": _RANDOM.uniform(1, 2, (64, 32)).astype(np.float32)}
    quantized = int8_graph(model, batch, tmp_path)
    fixed = bias.corrected(quantized, units_of(quantized), [batch], tmp_path)
    assert fixed is not None
    before, after = (
        abs(float((_run(one, batch) - _run(model, batch)).mean()))
        for one in (quantized, fixed.model)
    )
    assert before > 0.005
    assert after < before / 20
    # In floats it errs in nothing.
    again = without(fixed.without({"p"}), units_of(quantized), {"p"})
    assert np.allclose(_run(again, batch), _run(model, batch), atol=1e-4)


def test_pins_keep_operators_in_floats(bench: Bench, tmp_path: Path) -> None:
    source = _convolutions(tmp_path / "m.onnx")
    given = {"onnx": source, "calibration": save_npz(tmp_path / "x.npz", x=_images(32))}
    made = bench.run(CalibrateParams(pins={"floats": ["sec*"]}), **given)
    products = compute_of(onnx.load(str(made.outputs["typed"])), {"x": _SHAPE}).products
    assert {one.name: one.type for one in products} == {
        "first": "int8",
        "second": "fp32",
        "third": "int8",
        "head": "int8",
    }
    half = compute_of(onnx.load(str(made.outputs["typed_half"])), {"x": _SHAPE}).products
    assert {one.name: one.type for one in half}["second"] == "fp16"


def test_a_pin_that_names_nothing_is_refused_with_names_near_it(
    bench: Bench, tmp_path: Path
) -> None:
    source = _convolutions(tmp_path / "m.onnx")
    given = {"onnx": source, "calibration": save_npz(tmp_path / "x.npz", x=_images(16))}
    for pins, near in (({"floats": ["secnd"]}, "'second'"), ({"quantized": ["hed"]}, "'head'")):
        error = bench.fails(CalibrationFailed, CalibrateParams(pins=pins), **given)
        assert near in (error.hint or "")
    error = bench.fails(CalibrationFailed, CalibrateParams(pins={"floats": ["*"]}), **given)
    assert "leaves no convolution" in error.detail
    both = {"floats": ["first"], "quantized": ["f*"]}
    error = bench.fails(CalibrationFailed, CalibrateParams(pins=both), **given)
    assert "'first' is to stay in floats and to stay quantised" in error.detail


def _judged(tmp_path: Path, source: Path) -> dict[str, Path]:
    """Data of a classifier whose labels are its own classes."""
    samples = _images(96)
    classes = _run(onnx.load(str(source)), {"x": samples}).argmax(axis=1)
    return {
        "onnx": source,
        "calibration": save_npz(tmp_path / "calibration.npz", x=_images(64)),
        "evaluation": save_npz(tmp_path / "evaluation.npz", x=samples, label=classes),
    }


def test_what_meets_the_goal_at_once_stays_as_it_is(bench: Bench, digits: Digits) -> None:
    goal = AccuracyGoal(max_drop=0.05, on_gpus=True)
    given = {"onnx": digits.onnx, "calibration": digits.calibration}
    made = bench.run(CalibrateParams(goal=goal), evaluation=digits.evaluation, **given)
    search = made.facts["search"]
    assert search["method"] == "plain"
    assert search["in_floats"] == []
    assert [one["what"] for one in search["tried"]] == ["plain", "plain, all samples"]
    assert search["drop"] <= 0.05
    assert made.outputs["typed"].read_bytes() == digits.int8.read_bytes()


def test_a_graph_that_plain_int8_ruins_keeps_its_accuracy(bench: Bench, tmp_path: Path) -> None:
    source = _convolutions(tmp_path / "m.onnx", spread=3000)
    given = _judged(tmp_path, source)
    goal = AccuracyGoal(max_drop=0.1, on_cpus=True, budget_s=500)
    made = bench.run(CalibrateParams(goal=goal), **given)
    search = made.facts["search"]
    assert search["tried"][0]["what"] == "plain"
    assert search["tried"][0]["drop"] > 0.2
    assert search["drop"] <= 0.1
    assert search["held_out_drop"] <= 0.1
    assert search["held_out"] == 24
    assert search["spent_s"] < 500
    assert any("equalised" in one["what"] for one in search["tried"])
    # The engine of the very graph keeps it too.
    build = BuildParams(target=CPU, compute_capability="cpu", precision="int8")
    rest = {"onnx": source, "calibration": given["calibration"]}
    engine = bench.run(build, typed=made.outputs["typed"], **rest).outputs["engine"]
    with np.load(given["evaluation"]) as data:
        found = OrtModel(engine, is_engine=True).run({"x": data["x"]})["y"].argmax(axis=1)
        assert (found == data["label"]).mean() >= 0.89
    phases = [phase for phase, _ in bench.phases]
    assert "judge plain" in phases


def test_layers_that_harm_most_are_given_back_to_floats(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.goals.equalised.equalised", lambda *_: None)
    given = _judged(tmp_path, _convolutions(tmp_path / "m.onnx", spread=3000))
    goal = AccuracyGoal(max_drop=0.1, on_gpus=True, budget_s=500)
    made = bench.run(CalibrateParams(goal=goal), **given)
    search = made.facts["search"]
    assert "second" in search["in_floats"]  # reads the channels of very different sizes
    assert 0 < search["int8_share"] < 1
    assert search["drop"] <= 0.1
    products = compute_of(onnx.load(str(made.outputs["typed"])), {"x": _SHAPE}).products
    types = {one.name: one.type for one in products}
    assert types["second"] == "fp32"
    assert "int8" in types.values()
    pinned = CalibrateParams(goal=goal, pins={"quantized": ["first", "second"]})
    error = bench.fails(AccuracyDropped, pinned, **given)
    assert "the closest has a drop of" in error.detail


def _fading(tmp_path: Path) -> dict[str, Path]:
    """A product whose scores pass through values at which fp16 has steps of four, and its data."""
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["scores"], name="head"),
        helper.make_node("Add", ["scores", "far"], ["there"], name="away"),
        helper.make_node("Sub", ["there", "far"], ["y"], name="back"),
    ]
    weights = {
        "m": _RANDOM.normal(0, 0.2, (16, 32)).astype(np.float32),
        "far": np.full(1, 4096, np.float32),
    }
    source = small_graph(tmp_path / "m.onnx", *nodes, shape=("n", 16), weights=weights)
    samples = _RANDOM.normal(0, 1, (160, 16)).astype(np.float32)
    classes = _run(onnx.load(str(source)), {"x": samples}).argmax(axis=1)
    return {
        "onnx": source,
        "calibration": save_npz(tmp_path / "calibration.npz", x=samples[:64]),
        "evaluation": save_npz(tmp_path / "evaluation.npz", x=samples[64:], label=classes[64:]),
    }


def test_what_fp16_loses_is_fp32_for_gpus(bench: Bench, tmp_path: Path) -> None:
    given = _fading(tmp_path)
    goal = AccuracyGoal(max_drop=0.2, on_gpus=True, budget_s=3600)
    without = bench.run(CalibrateParams(), onnx=given["onnx"], calibration=given["calibration"])
    made = bench.run(CalibrateParams(goal=goal), **given)
    right = []
    with np.load(given["evaluation"]) as data:
        for one in (without, made):
            half = rounded_model(onnx.load(str(one.outputs["typed_half"])))
            found = _run(half, {"x": data["x"]}).argmax(axis=1)
            right.append(float((found == data["label"]).mean()))
    assert right[0] < 0.5
    assert right[1] >= 0.8
    search = made.facts["search"]
    assert search["in_fp32"] == ["away", "back"]
    assert search["in_floats"] == []
    assert search["tried"][-1]["what"] == "plain, 2 operators in fp32, all samples"
    assert search["drop"] == pytest.approx(1 - right[1])
    assert without.facts["remainder_nodes"] == {"fp16": 3}
    assert made.facts["remainder_nodes"] == {"fp16": 1, "fp32": 2}


def test_few_operators_are_fp32_and_all_of_them_where_time_is_short() -> None:
    operators = [f"operator {n}" for n in range(13)]
    asked: list[frozenset[str]] = []

    def meets(wide: frozenset[str]) -> bool:
        asked.append(wide)
        return {"operator 3", "operator 4", "operator 11"} <= wide

    found = in_fp32(operators, meets, lambda: True)
    assert found == {"operator 3", "operator 4", "operator 11"}
    assert len(asked) < 20
    # Without time nothing is tried, and all of it is as it was seen to be met.
    assert in_fp32(operators, meets, lambda: False) == set(operators)


def test_a_goal_that_nothing_meets_says_what_came_closest(bench: Bench, tmp_path: Path) -> None:
    source = _convolutions(tmp_path / "m.onnx", spread=3000)
    given = _judged(tmp_path, source)
    # The labels are the source's own: nothing is better.
    goal = AccuracyGoal(max_drop=-0.01, on_gpus=True, budget_s=1)
    params = CalibrateParams(goal=goal, pins={"quantized": ["*"]}, method="max")
    error = bench.fails(AccuracyDropped, params, **given)
    assert "no quantised graph keeps top1 within -0.01 of its 1.0000" in error.detail
    assert "the closest has a drop of" in error.detail


def test_what_keeps_the_accuracy_is_timed_beside_floats_if_it_has_to_be_fast(
    bench: Bench, digits: Digits
) -> None:
    given = {"onnx": digits.onnx, "calibration": digits.calibration}
    given["evaluation"] = digits.evaluation
    # No machine takes 100 times as long, nor a millionth of the time.
    for forms in ({"on_cpus": True}, {"on_gpus": True}):
        goal = AccuracyGoal(max_drop=0.05, max_latency_ratio=100, **forms)
        search = bench.run(CalibrateParams(goal=goal), **given).facts["search"]
        assert 0 < search["latency_ratio"] <= search["max_latency_ratio"] == 100
        assert search["tried"][-1]["latency_ratio"] == search["latency_ratio"]
        assert search["tried"][0].get("latency_ratio") is None
    goal = AccuracyGoal(max_drop=0.05, max_latency_ratio=1e-6, on_cpus=True)
    error = bench.fails(LatencyMissed, CalibrateParams(goal=goal), **given)
    assert "keeps top1 within 0.05 takes 1e-06 of the time in floats or less" in error.detail
    assert "the closest takes " in error.detail
    assert "raise max_latency_ratio or max_drop" in (error.hint or "")
    assert any("biases corrected" in phase for phase, _ in bench.phases)  # it went on looking


def test_a_graph_that_came_quantised_is_not_looked_for_and_has_no_latency_to_meet(
    bench: Bench, digits: Digits
) -> None:
    given = {"onnx": digits.int8, "calibration": digits.calibration}
    goal = AccuracyGoal(max_drop=0.05, max_latency_ratio=1, on_cpus=True)
    error = bench.fails(CalibrationFailed, CalibrateParams(goal=goal), **given)
    assert "quantised already" in error.detail


def test_a_goal_needs_labels(bench: Bench, tmp_path: Path) -> None:
    given = _judged(tmp_path, _convolutions(tmp_path / "m.onnx"))
    given["evaluation"] = save_npz(tmp_path / "unlabelled.npz", x=_images(16))
    goal = AccuracyGoal(max_drop=0.01, on_gpus=True)
    error = bench.fails(InvalidData, CalibrateParams(goal=goal), **given)
    assert "no 'label'" in error.detail


def test_weights_are_toggled_with_the_seven_bits_that_cpus_get(
    placed: onnx.ModelProto,
) -> None:
    before = {one.name: numpy_helper.to_array(one) for one in placed.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(placed)
    narrow(copy)
    after = {one.name: numpy_helper.to_array(one) for one in copy.graph.initializer}
    [scale] = {node.input[1] for node in placed.graph.node if node.input[0] == "w0"}
    assert np.allclose(after[scale], before[scale] * 127 / 64)
