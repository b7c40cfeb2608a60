"""Weights rounded by what their products read: beside a reference, on other samples, and in a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from farm.errors import AccuracyDropped
from farm.specs.accuracy_goal import AccuracyGoal
from farm.stages import CalibrateParams
from tests.graphs import small_graph
from tests.placed import int8_graph
from tests.stage_bench import Bench, save_npz
from workers.backends.ort.cpu import OrtModel
from workers.goals import bias, gptq, harm, moments, rounding
from workers.goals.gptq import Floats, Levels, Moments
from workers.goals.moments import Kernel, Reader
from workers.goals.toggles import Toggled
from workers.goals.units import Units, units_of, without
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize.cpu_integers import integer_graph
from workers.quantize.stored_weights import fold_quantized_weights

_RANDOM = np.random.default_rng(0)
_BATCH = Batch(axes={"x": 0}, min=1, opt=16, max=32, is_dynamic=True)
_PADS = [2, 1, 0, 3]


def _moments(groups: int, inputs: int, rows: int, *, noise: float = 0.1) -> Moments:
    """Of inputs that go with each other, as a network's do, and errors of theirs."""
    mixed = np.random.default_rng(1).normal(size=(groups, inputs, max(2, inputs // 4)))
    hidden = _RANDOM.normal(size=(groups, mixed.shape[2], rows))
    plain = mixed @ hidden + 0.1 * _RANDOM.normal(size=(groups, inputs, rows))
    errors = noise * _RANDOM.normal(size=plain.shape)
    across = (plain + errors).swapaxes(1, 2)
    return Moments(inputs=(plain + errors) @ across / rows, errors=errors @ across / rows)


def _levels(weights: Floats, most: int = 7) -> Levels:
    return Levels(step=np.abs(weights).max(axis=2, keepdims=True) / most, most=most)


def _reference(weights: Floats, levels: Levels, fit: Moments) -> Floats:
    """Each weight to the nearest after all that follow have been solved for those before, by equations."""
    found = np.empty_like(weights)
    for group, (inputs, errors) in enumerate(zip(fit.inputs, fit.errors, strict=True)):
        count = len(inputs)
        damped = inputs + 0.01 * np.mean(np.diag(inputs)) * np.eye(count)
        order = np.argsort(-np.diag(inputs), kind="stable")
        for output, own in enumerate(weights[group]):
            best = own - np.linalg.solve(damped, errors.T @ own)
            made = np.zeros(count)
            for at in range(count):
                done, rest = order[:at], order[at:]
                lost = damped[np.ix_(rest, done)] @ (made[done] - best[done])
                solved = best[rest] - np.linalg.solve(damped[np.ix_(rest, rest)], lost)
                step = levels.step[group, output, 0]
                level = np.clip(np.rint(solved[0] / step), -levels.most, levels.most)
                made[order[at]] = level * step
            found[group, output] = made
    return found


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 3, 9), (4, 2, 25), (1, 2, 150)])
def test_weights_are_those_of_a_reference_that_solves_for_each_of_them(
    groups: int, outputs: int, inputs: int
) -> None:
    weights = _RANDOM.normal(size=(groups, outputs, inputs))
    fit = _moments(groups, inputs, 4 * inputs)
    levels = _levels(weights)
    # By the same moments no channel keeps the nearest weights, unless those are better.
    made, changed = gptq.rounded(weights, levels, fit, fit)
    expected = _reference(weights, levels, fit)
    nearest = levels.nearest(weights)
    is_better = gptq.error(weights, expected, fit) < gptq.error(weights, nearest, fit)
    assert changed == is_better.sum() > 0
    assert np.allclose(made, np.where(is_better[..., None], expected, nearest))


def test_no_channel_errs_more_on_other_samples_than_with_the_nearest_weights() -> None:
    weights = _RANDOM.normal(size=(2, 16, 32))
    levels = _levels(weights)
    nearest = levels.nearest(weights)
    # As many rows as inputs say little: much of what fits them is wrong for others.
    fit, held = _moments(2, 32, 32), _moments(2, 32, 2000)
    made, changed = gptq.rounded(weights, levels, fit, held)
    before, after = (gptq.error(weights, one, held) for one in (nearest, made))
    assert (after <= before).all()
    assert 0 < changed < before.size
    well, _ = gptq.rounded(weights, levels, _moments(2, 32, 2000), held)
    assert gptq.error(weights, well, held).sum() < 0.5 * before.sum()


def test_moments_that_are_no_numbers_leave_the_nearest_weights() -> None:
    weights = _RANDOM.normal(size=(1, 4, 8))
    levels = _levels(weights)
    broken = Moments(inputs=np.full((1, 8, 8), np.nan), errors=np.zeros((1, 8, 8)))
    for inputs in (broken, Moments(inputs=np.zeros((1, 8, 8)), errors=np.zeros((1, 8, 8)))):
        made, _ = gptq.rounded(weights, levels, inputs, inputs)
        assert np.array_equal(made, levels.nearest(weights))


def test_moments_of_a_convolution_are_those_of_what_it_reads(tmp_path: Path) -> None:
    weights = _RANDOM.normal(size=(6, 4, 3, 2)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=2, strides=[2, 1], dilations=[1, 2], pads=_PADS
    )
    model = onnx.load(
        str(small_graph(tmp_path / "m.onnx", node, shape=("n", 8, 9, 9), weights={"w": weights}))
    )
    values = _RANDOM.normal(size=(16, 8, 9, 9)).astype(np.float32)
    kernel = Kernel.of(node, (3, 2))
    reader = Reader(plain="x", rounded="x", shape=(2, 3, 24), kernel=kernel)
    batches: list[Arrays] = [{"x": one} for one in np.split(values, 4)]
    seen = moments.gathered(model, {"y": reader}, batches, _BATCH, tmp_path, lambda: True)
    assert seen is not None
    rows = weights.reshape(2, 3, 24).astype(np.float64)
    # Three batches, and the fourth by itself.
    for found, given in zip(seen["y"], (values[:12], values[12:]), strict=True):
        made = OrtModel(model.SerializeToString()).run({"x": given})["y"]
        expected = np.square(made.astype(np.float64)).mean(axis=(0, 2, 3))
        squares = ((rows @ found.inputs) * rows).sum(axis=2).reshape(-1)
        assert np.allclose(squares, expected, rtol=1e-4)
        assert not found.errors.any()
    stopped = moments.gathered(model, {"y": reader}, batches, _BATCH, tmp_path, lambda: False)
    assert stopped is None


def _network(path: Path) -> Path:
    """Convolutions and a matrix product: in each channel one weight leaves few levels to the others."""
    weights = {
        "w0": _RANDOM.normal(0, 0.1, (32, 16, 3, 3)).astype(np.float32),
        "b0": _RANDOM.normal(0, 0.1, 32).astype(np.float32),
        "w1": _RANDOM.normal(0, 0.1, (32, 32, 1, 1)).astype(np.float32),
        "b1": _RANDOM.normal(0, 0.1, 32).astype(np.float32),
        "m": _RANDOM.normal(0, 0.1, (32, 32)).astype(np.float32),
    }
    weights["w0"][:, 3, 0, 0] = weights["w1"][:, 3, 0, 0] = weights["m"][3] = 4.0
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "w1", "b1"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["rc"]),
        helper.make_node("GlobalAveragePool", ["rc"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="head"),
    ]
    return small_graph(path, *nodes, shape=("n", 16, 9, 9), weights=weights)


def _images(count: int) -> np.ndarray:
    """Smooth images: neighbours go with each other."""
    values = _RANDOM.normal(size=(count, 16, 12, 12))
    for axis in (2, 3):
        values = np.cumsum(values, axis=axis)
        values = np.take(values, range(3, 12), axis) - np.take(values, range(9), axis)
    return values.astype(np.float32)


class _Case:
    """A network, quantised, with rounded weights."""

    def __init__(self, folder: Path, *, seven_bits: bool) -> None:
        self.folder, self.seven_bits = folder, seven_bits
        self.source = onnx.load(str(_network(folder / "m.onnx")))
        self.batches: list[Arrays] = [{"x": one} for one in np.split(_images(128), 8)]
        samples = {"x": np.concatenate([batch["x"] for batch in self.batches])}
        self.quantized = int8_graph(self.source, samples, folder)
        self.units: Units = units_of(self.quantized)
        self.made = self.rounded()

    def rounded(self) -> rounding.Rounded:
        judged = onnx.ModelProto()
        judged.CopyFrom(self.quantized)
        if self.seven_bits:
            harm.narrow(judged)
        made = rounding.rounded(
            self.quantized,
            judged,
            self.units,
            self.batches,
            _BATCH,
            self.folder,
            seven_bits=self.seven_bits,
            has_time=lambda: True,
        )
        assert made is not None
        return made

    def error(self, model: onnx.ModelProto, batch: Arrays) -> float:
        """Of the outputs, in the form that engines run."""
        judged = onnx.ModelProto()
        judged.CopyFrom(model)
        if self.seven_bits:
            harm.narrow(judged)
        expected, found = (
            np.asarray(OrtModel(one.SerializeToString()).run(batch)["y"], np.float64)
            for one in (self.source, judged)
        )
        return float(np.square(found - expected).mean())


@pytest.fixture(scope="module", params=[True, False], ids=["seven bits", "eight bits"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Case:
    return _Case(tmp_path_factory.mktemp("rounded"), seven_bits=request.param)


def test_outputs_err_less_on_other_samples(case: _Case) -> None:
    other = {"x": _images(64)}
    before, after = (case.error(one, other) for one in (case.quantized, case.made.model))
    assert after < before / 2
    assert set(case.made.before.values()) == {"w0", "w1", "m"}


def test_a_product_in_floats_has_the_weights_that_it_had(case: _Case) -> None:
    batch = {"x": _images(16)}
    floats = without(case.made.model, case.units, {unit.id for unit in case.units.all})
    expected, found = (
        OrtModel(one.SerializeToString()).run(batch)["y"] for one in (case.source, floats)
    )
    assert np.allclose(found, expected, atol=1e-5)
    assert not [t.name for t in floats.graph.initializer if t.name.endswith("__rounded")]


def test_rounding_again_gives_the_same_bytes(case: _Case) -> None:
    first, again = case.made.model, case.rounded().model
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


def test_moments_that_are_gathered_one_after_another_give_the_same_weights(
    case: _Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first convolution's fit, and no others beside them.
    monkeypatch.setattr(rounding, "_MOST_BYTES", 4 * 8 * 144**2)
    assert case.rounded().model.SerializeToString(
        deterministic=True
    ) == case.made.model.SerializeToString(deterministic=True)
    monkeypatch.setattr(rounding, "_MOST_BYTES", 4 * 8 * 100**2)
    assert set(case.rounded().before.values()) == {"w1", "m"}


def test_what_cpus_get_are_the_seven_bits_that_were_chosen(tmp_path: Path) -> None:
    case = _Case(tmp_path, seven_bits=True)
    folded = onnx.ModelProto()
    folded.CopyFrom(case.made.model)
    fold_quantized_weights(folded)
    engine = integer_graph(folded, lambda names: dict.fromkeys(names, 1.0))
    tensors = {one.name: numpy_helper.to_array(one) for one in engine.graph.initializer}
    judged = onnx.ModelProto()
    judged.CopyFrom(case.made.model)
    harm.narrow(judged)
    fold_quantized_weights(judged)
    expected = {one.name: numpy_helper.to_array(one) for one in judged.graph.initializer}
    narrow = [name for name in tensors if name.endswith("__narrow")]
    assert len(narrow) == 3
    for name in narrow:
        assert np.array_equal(tensors[name], expected[name.removesuffix("__narrow")])


def test_biases_are_corrected_for_the_bits_that_weights_get(tmp_path: Path) -> None:
    case = _Case(tmp_path, seven_bits=True)
    other = {"x": _images(64)}
    errors = []
    for seven_bits in (True, False):
        fixed = bias.corrected(
            case.quantized, case.units, case.batches, tmp_path, seven_bits=seven_bits
        )
        assert fixed is not None
        errors.append(case.error(fixed.model, other))
    assert errors[0] < errors[1]


def test_a_unit_alone_is_measured_beside_the_weights_that_it_had(case: _Case) -> None:
    batch = {"x": _images(16)}
    judged = harm.as_judged(case.made.model, lambda names: dict.fromkeys(names, 500.0))
    toggled = Toggled(judged, units_of(judged).renamed(case.made.before), case.folder)
    expected = OrtModel(case.source.SerializeToString()).run(batch)["y"]
    assert np.allclose(toggled.run(batch, ())["y"], expected, rtol=1e-4, atol=1e-3)


def test_a_search_rounds_weights_where_nothing_before_met_the_goal(
    bench: Bench, tmp_path: Path
) -> None:
    source = _network(tmp_path / "m.onnx")
    samples = _images(64)
    made = OrtModel(source).run({"x": samples})["y"]
    given = {
        "onnx": source,
        "calibration": save_npz(tmp_path / "calibration.npz", x=_images(64)),
        "evaluation": save_npz(tmp_path / "evaluation.npz", x=samples, label=made),
    }
    # Of outputs around 100, and all has to stay in integers.
    goal = AccuracyGoal(metric="mae", max_drop=1e-3, on_cpus=True, budget_s=300)
    params = CalibrateParams(goal=goal, pins={"quantized": ["*"]}, method="max")
    error = bench.fails(AccuracyDropped, params, **given)
    assert "rounded by GPTQ)" in error.detail
    phases = list(dict.fromkeys(phase for phase, _ in bench.phases))
    assert phases.index("judge biases corrected") < phases.index("round weights")
