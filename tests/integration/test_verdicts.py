"""What the measure stage says of engines that are broken, doubtful, or judged on little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import AccuracyDropped, InvalidModel
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.stages import JobKind, MeasureParams
from workers.clocks.host import Pace
from workers.inputs.batch import Batch
from workers.measure import cpu
from workers.measure import ends as measure_ends
from workers.measure import invariance as measure_invariance
from workers.measure.ends import at_ends
from workers.measure.invariance import batch_invariance
from workers.stages import base
from workers.stages.base import Stage

rng = np.random.default_rng(3)
WEIGHTS = rng.standard_normal((16, 6)).astype(np.float32)
ENGINE = {"runtime": "onnxruntime", "gpu": "cpu"}


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """What these tests are about isn't how fast an engine is."""
    pace = Pace(warmup_s=0.0, duration_s=0.0, min_iterations=1, max_s=0.0)
    monkeypatch.setattr(cpu, "LATENCY_PACE", pace)
    monkeypatch.setattr(cpu, "THROUGHPUT_PACE", pace)


def model(path: Path, nodes: list[Any], output: Any, weights: np.ndarray = WEIGHTS) -> Path:
    """x [n,16] → …, with the initializer w [16,6]."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph(
        nodes, "g", [given], [output], [numpy_helper.from_array(weights, "w")]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(made, path)
    return path


def classifier(path: Path, weights: np.ndarray = WEIGHTS, *, ends_in_argmax: bool = True) -> Path:
    product = helper.make_node("MatMul", ["x", "w"], ["scores" if ends_in_argmax else "y"])
    argmax = helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0)
    kind = (TensorProto.INT64, ["n"]) if ends_in_argmax else (TensorProto.FLOAT, ["n", 6])
    nodes = [product, argmax] if ends_in_argmax else [product]
    return model(path, nodes, helper.make_tensor_value_info("y", *kind), weights)


def samples(path: Path, count: int, **more: np.ndarray) -> Path:
    np.savez(path, x=rng.standard_normal((count, 16)).astype(np.float32), **more)
    return path


def measured(
    tmp_path: Path, source: Path, engine: Path, precision: str = "fp32", **more: Any
) -> dict[str, Any]:
    inputs = {name: more.pop(name) for name in ("calibration", "evaluation") if name in more}
    workdir = tmp_path / "work"
    workdir.mkdir()
    params = MeasureParams(precision=precision, format="onnx", target=ENGINE, **more)
    stage = Stage(
        kind=JobKind.MEASURE,
        params=params,
        inputs={"source": source, "typed": source, "engine": engine, **inputs},
        workdir=workdir,
        progress=lambda _phase, _share: None,
    )
    facts = base.run(stage).facts.model_dump(mode="json")
    json.dumps(facts, allow_nan=False)
    return facts


def test_an_engine_whose_only_output_is_an_argmax_is_refused_when_its_classes_are_wrong(tmp_path):
    source = classifier(tmp_path / "source.onnx")
    wrong = classifier(tmp_path / "engine.onnx", np.roll(WEIGHTS, 1, axis=1))
    with pytest.raises(AccuracyDropped, match=r"0\.0% of the outputs' integers"):
        measured(tmp_path, source, wrong, evaluation=samples(tmp_path / "e.npz", 64))


@pytest.mark.parametrize(
    ("weights", "ends_in_argmax", "told"),
    [(WEIGHTS[:, :5], False, r"float32 \[8, 5\]"), (WEIGHTS, True, r"int64 \[8\]")],
)
def test_an_engine_with_other_shapes_or_types_is_refused(weights, ends_in_argmax, told, tmp_path):
    source = classifier(tmp_path / "source.onnx", ends_in_argmax=False)
    other = classifier(tmp_path / "engine.onnx", weights, ends_in_argmax=ends_in_argmax)
    with pytest.raises(InvalidModel, match=r"float32 \[8, 6\].*" + told):
        measured(tmp_path, source, other, evaluation=samples(tmp_path / "e.npz", 64))


def test_integers_for_floats_of_the_same_shape_are_refused(tmp_path):
    source = classifier(tmp_path / "source.onnx", ends_in_argmax=False)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.INT64),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 6])
    whole = model(tmp_path / "engine.onnx", nodes, output)
    with pytest.raises(InvalidModel, match=r"int64 \[8, 6\]"):
        measured(tmp_path, source, whole, evaluation=samples(tmp_path / "e.npz", 64))


def test_an_engine_with_an_argmax_is_judged_by_labels(tmp_path):
    source = classifier(tmp_path / "source.onnx")
    labels = rng.integers(0, 6, 64)
    facts = measured(
        tmp_path, source, source, evaluation=samples(tmp_path / "e.npz", 64, label=labels)
    )
    assert facts["accuracy"]["task"]["drop"] == 0.0
    assert facts["accuracy"]["top1_agreement"] == 1.0
    assert facts["doubts"] == []


def test_an_engine_that_is_off_is_published_as_doubtful_with_the_figures(tmp_path):
    source = classifier(tmp_path / "source.onnx", ends_in_argmax=False)
    noise = rng.normal(0, 0.6, WEIGHTS.shape).astype(np.float32)
    off = classifier(tmp_path / "engine.onnx", WEIGHTS + noise, ends_in_argmax=False)
    facts = measured(tmp_path, source, off, evaluation=samples(tmp_path / "e.npz", 256))
    assert 0.5 < facts["accuracy"]["cosine_mean"] < 0.99
    assert any("is the gate" in doubt and "over 256 samples" in doubt for doubt in facts["doubts"])
    # Who asks for less gets it.
    gates = {"agreement": 0.1, "error": 5.0}
    (tmp_path / "work").rename(tmp_path / "before")
    again = measured(tmp_path, source, off, gates=gates, evaluation=tmp_path / "e.npz")
    assert again["doubts"] == []


@pytest.mark.parametrize(
    ("count", "kind", "judged"),
    [(64, "held-out", 16), (24, "held-out", 8), (23, "calibration", 23)],
)
def test_engines_are_judged_on_calibration_data_that_were_held_out(tmp_path, count, kind, judged):
    source = classifier(tmp_path / "source.onnx", ends_in_argmax=False)
    data = samples(tmp_path / "c.npz", count)
    facts = measured(tmp_path, source, source, calibration=data, hold_out=8)["accuracy"]
    assert (facts["data"], facts["samples"]) == (kind, judged)
    low, high = facts["top1_interval"]
    assert 0 < low < high == 1.0


def test_what_is_judged_without_data_says_so(tmp_path):
    source = classifier(tmp_path / "source.onnx", ends_in_argmax=False)
    assert measured(tmp_path, source, source)["accuracy"]["data"] == "random"


def test_nan_where_the_source_gives_nan_is_right_and_nothing_but_nan_is_said(tmp_path):
    """A logarithm of noise below zero."""
    log = helper.make_node("Log", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])
    source = model(tmp_path / "source.onnx", [log], output)
    facts = measured(tmp_path, source, source, evaluation=samples(tmp_path / "e.npz", 8))
    assert facts["accuracy"]["cosine_mean"] == pytest.approx(1.0)
    assert facts["accuracy"]["all_nan"] == []
    np.savez(tmp_path / "negative.npz", x=-np.ones((8, 16), np.float32))
    (tmp_path / "work").rename(tmp_path / "before")
    facts = measured(tmp_path, source, source, evaluation=tmp_path / "negative.npz")
    assert facts["accuracy"]["all_nan"] == ["y"]
    assert "returns only NaN" in facts["doubts"][0]


def test_outputs_whose_size_depends_on_the_data_are_matched_item_by_item(tmp_path):
    """NonZero gives an item for each value above 0: an engine that is a little off finds a few more."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("NonZero", ["r"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])
    source = model(tmp_path / "source.onnx", nodes, output)
    noise = rng.normal(0, 0.01, WEIGHTS.shape).astype(np.float32)
    engine = model(tmp_path / "engine.onnx", nodes, output, WEIGHTS + noise)
    facts = measured(tmp_path, source, engine, evaluation=samples(tmp_path / "e.npz", 512))
    accuracy = facts["accuracy"]
    assert 0.98 < accuracy["matched"] < 1
    assert accuracy["outputs"] == [{"name": "y", "kind": "items"}]
    assert facts["doubts"] == []


class Rows:
    """Adds a bias to each row, and a part of the row before it."""

    def __init__(self, leak: float = 0.0) -> None:
        self._leak = leak

    def run(self, arrays):
        x = arrays["x"]
        return {"y": x + 1 + self._leak * np.roll(x, 1, axis=0)}


def invariance(engine: Rows, source: Rows, precision: str = "fp16", **sizes: int) -> Any:
    low, high = sizes.get("low", 1), sizes.get("high", 8)
    spec = TensorSpec(name="x", dtype="float32", shape=("n" if low != high else low, 3))
    profile = {"x": ShapeRange(min=(low, 3), opt=(high, 3), max=(high, 3))}
    data = {"x": rng.standard_normal((8, 3)).astype(np.float32)}
    return batch_invariance(engine, source, data, Batch.of([spec], profile), Precision(precision))


def test_a_row_that_leaks_into_the_next_is_found():
    found = invariance(Rows(leak=0.5), Rows())
    assert found.holds is False
    assert found.max_error > 0.05
    assert found.source_error < 1e-6


def test_rows_that_have_nothing_to_do_with_each_other_hold():
    assert invariance(Rows(), Rows()).holds is True


def test_a_source_whose_rows_depend_on_each_other_may_have_such_an_engine():
    assert invariance(Rows(leak=0.5), Rows(leak=0.5)).holds is True


class Tail:
    """Adds a bias to each row, and is wrong beyond so many of them, as a kernel for large batches may be."""

    def __init__(self, right: int, by: float = 1.0) -> None:
        self._right, self._by = right, by

    def run(self, arrays):
        x = arrays["x"]
        wrong = np.arange(len(x))[:, None] >= self._right
        return {"y": np.where(wrong, x + 1 + self._by, x + 1)}


@pytest.mark.parametrize("low", [1, 2])
def test_an_engine_that_is_wrong_at_the_largest_batch_alone_is_found(low):
    found = invariance(Tail(right=32), Rows(), low=low, high=64)
    assert (found.batch, found.holds) == (64, False)
    assert found.max_error > 0.05
    whole = invariance(Tail(right=64), Rows(), low=low, high=64)
    assert (whole.batch, whole.holds, whole.max_error) == (64, True, 0.0)
    assert invariance(Tail(right=32), Rows(), low=low, high=32).holds is True


def test_nan_in_the_last_row_of_the_largest_batch_is_found():
    assert invariance(Tail(right=63, by=np.nan), Rows(), high=64).holds is False


def test_the_largest_batch_is_left_out_if_it_would_take_long(monkeypatch):
    monkeypatch.setattr(measure_invariance, "_MAX_RUN_S", 0.0)
    found = invariance(Tail(right=32), Rows(), high=64)
    assert (found.batch, found.holds) == (4, True)


def test_a_fixed_batch_has_no_rows_to_compare():
    assert invariance(Rows(), Rows(), low=4, high=4) is None


class Steps:
    """Doubles each step, and adds to it the steps from some number on, as a kernel for long inputs may."""

    def __init__(self, right: int = 99, by: float = 1.0) -> None:
        self._right, self._by = right, by

    def run(self, arrays):
        x = arrays["x"]
        late = x[:, self._right :]
        return {"y": 2 * x + (self._by * late.sum(axis=1, keepdims=True) if late.size else 0.0)}


class Refusing(Steps):
    def run(self, arrays):
        if arrays["x"].shape[1] > 8:
            raise RuntimeError("too long")
        return super().run(arrays)


def ends(engine: Any, source: Any, *, steps: int = 8, low: int = 1) -> dict[str | None, Any]:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", "s"))
    profile = {"x": ShapeRange(min=(low, 2), opt=(8, 8), max=(64, 32))}
    data = {"x": rng.standard_normal((8, steps)).astype(np.float32)}
    found = at_ends(engine, source, data, profile, Batch.of([spec], profile))
    return {one.which: one for one in found}


@pytest.mark.parametrize("low", [1, 2])
@pytest.mark.parametrize("steps", [5, 8])
def test_an_engine_that_is_wrong_at_the_largest_size_of_another_axis_is_found(low, steps):
    found = ends(Steps(right=16), Steps(), steps=steps, low=low)
    assert found["min"].relative_error == 0.0
    assert found["max"].relative_error > 0.1
    right = ends(Steps(), Steps(), steps=steps, low=low)
    assert (right["min"].relative_error, right["max"].relative_error) == (0.0, 0.0)


def test_sizes_that_the_samples_have_arent_tried_again():
    assert list(ends(Steps(), Steps(), steps=32)) == ["min"]


def test_values_that_are_not_finite_or_an_engine_that_fails_at_an_end_are_told():
    assert ends(Steps(right=31, by=np.inf), Steps())["max"].not_finite > 0
    assert ends(Refusing(), Steps())["max"].failed == "RuntimeError: too long"
    assert "too long" in ends(Steps(), Refusing())["max"].skipped


def test_an_end_that_would_take_long_is_left_out_and_told(monkeypatch):
    monkeypatch.setattr(measure_ends, "_MAX_RUN_S", 0.0)
    found = ends(Steps(right=16), Steps())
    assert found["max"].skipped == "it would take too long"
    assert found["max"].relative_error is None


def test_an_engine_that_is_wrong_for_long_inputs_alone_is_doubtful(tmp_path):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "s"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "s"])

    def save(name: str, *nodes: Any) -> Path:
        bounds = {"from": [8], "to": [10**6], "axis": [1]}
        held = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in bounds.items()]
        graph = helper.make_graph([*nodes], "g", [given], [output], held)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    source = save("source.onnx", helper.make_node("Softplus", ["x"], ["y"]))
    engine = save(
        "engine.onnx",
        helper.make_node("Softplus", ["x"], ["right"]),
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["late"]),
        helper.make_node("ReduceSum", ["late", "axis"], ["wrong"]),
        helper.make_node("Add", ["right", "wrong"], ["y"]),
    )
    np.savez(tmp_path / "e.npz", x=rng.standard_normal((8, 4)).astype(np.float32))
    profiles = [{"x": {"min": [1, 2], "opt": [8, 4], "max": [8, 16]}}]
    facts = measured(tmp_path, source, engine, evaluation=tmp_path / "e.npz", profiles=profiles)
    assert facts["accuracy"]["relative_error"] < 1e-5
    [doubt] = facts["doubts"]
    assert doubt.startswith("at the profile's largest sizes the error is")
