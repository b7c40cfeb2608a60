import math

import numpy as np
import pytest

from farm.errors import AccuracyDropped
from farm.reports.accuracy import BatchInvariance
from farm.specs.gates import Gates, QuantizedGates
from farm.specs.source import DataKind
from workers.measure import intervals
from workers.measure.accuracy import OutputComparison
from workers.measure.difference import difference
from workers.measure.verdict import doubts, refuse_broken

NAN, INF = float("nan"), float("inf")
rng = np.random.default_rng(5)


def compared(source, engine, labels=None, **more):
    comparison = OutputComparison(labels=labels, **more)
    comparison.add(source, engine, len(next(iter(source.values()))))
    return comparison.found().model_copy(update={"data": DataKind.EVALUATION}), comparison


def facts_of(source, engine, **more):
    return compared({"y": np.asarray(source)}, {"y": np.asarray(engine)}, **more)[0]


def test_classes_that_an_argmax_gives_are_compared_and_a_broken_engine_is_refused():
    source = rng.integers(0, 6, (64, 8, 8))
    facts = facts_of(source, (source + 1) % 6)
    assert facts.equal == 0.0
    assert facts.cosine_mean is None, "integers have no cosine"
    with pytest.raises(AccuracyDropped, match=r"0\.0% of the outputs' integers"):
        refuse_broken(facts, None)


def test_booleans_are_compared():
    facts = facts_of([[True, False], [True, True]], [[True, True], [True, True]])
    assert facts.equal == 0.75


def test_an_argmax_of_one_class_a_sample_has_top1_agreement_and_labels():
    source, engine = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    facts = facts_of(source, engine, labels=np.array([0, 1, 0, 3]))
    assert facts.top1_agreement == 0.75
    assert (facts.task.source, facts.task.engine) == (0.75, 0.5)


def test_labels_may_be_a_class_for_each_pixel():
    scores = rng.standard_normal((4, 3, 5, 5)).astype(np.float32)
    labels = scores.argmax(axis=1)
    worse = scores.copy()
    worse[0] = -worse[0]
    facts = facts_of(scores, worse, labels=labels)
    assert facts.task.source == 1.0
    right = (worse.argmax(axis=1) == labels).mean()
    assert facts.task.engine == pytest.approx(right)
    assert right < 0.9


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_in_the_same_places_is_equal(value):
    source = np.array([[1.0, value], [2.0, 3.0]], np.float32)
    facts, comparison = compared({"y": source}, {"y": source.copy()})
    assert comparison.not_finite == 0
    assert facts.cosine_mean == pytest.approx(1.0)
    assert difference({"y": source}, {"y": source.copy()}).beyond(1e-3) is None


@pytest.mark.parametrize(
    ("source", "engine"), [(1.0, NAN), (NAN, 1.0), (INF, -INF), (-INF, NAN), (1.0, INF)]
)
def test_what_is_finite_in_one_alone_or_another_infinity_counts(source, engine):
    left, right = (np.array([[value, 2.0, 3.0]], np.float32) for value in (source, engine))
    assert compared({"y": left}, {"y": right})[1].not_finite == 1
    assert difference({"y": left}, {"y": right}).finite is False


def test_an_output_that_is_nothing_but_nan_is_said_to_be_so():
    nothing = np.full((4, 3), NAN, np.float32)
    facts = facts_of(nothing, nothing.copy())
    assert facts.all_nan == ["y"]
    assert "returns only NaN" in doubts(facts, Gates(), None)[0]
    assert difference({"y": nothing}, {"y": nothing.copy()}).all_nan == ("y",)


def test_detections_are_compared_as_sets_when_their_number_differs():
    boxes = rng.uniform(0, 640, (40, 4)).astype(np.float32)
    scores = rng.uniform(0.5, 1, 40).astype(np.float32)
    classes = rng.integers(0, 80, 40)
    source = {"boxes": boxes, "scores": scores, "classes": classes}
    order = rng.permutation(39)  # one is lost, and they come in another order
    engine = {
        name: array[order] * (1 if array is classes else 1.001) for name, array in source.items()
    }
    comparison = OutputComparison()
    comparison.add(source, engine, 8)
    facts = comparison.found()
    assert facts.matched == pytest.approx(2 * 39 / (40 + 39))
    assert facts.cosine_mean is None
    assert facts.match_tolerance == 0.05


def test_a_detection_of_another_class_has_no_partner():
    source = {"scores": np.array([0.9, 0.8, 0.7]), "classes": np.array([1, 2, 3])}
    engine = {"scores": np.array([0.9, 0.8]), "classes": np.array([1, 5])}
    comparison = OutputComparison()
    comparison.add(source, engine, 1)
    assert comparison.found().matched == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("left", "right", "matched"), [(0, 3, 0.0), (3, 0, 0.0), (3, 3, 1.0), (0, 0, 1.0)]
)
def test_no_detections_are_like_none_alone(left, right, matched):
    comparison = OutputComparison()
    comparison.varying = {"boxes": 0}
    comparison.add({"boxes": np.ones((left, 4))}, {"boxes": np.ones((right, 4))}, 1)
    assert comparison.found().matched == matched


def test_batches_before_a_size_differed_are_compared_item_by_item_as_well():
    found = OutputComparison()
    same, fewer = np.eye(4), np.eye(4)[:3]
    batches = [(same, same[::-1]), (same, fewer)]
    for source, engine in batches:
        found.add({"boxes": source}, {"boxes": engine}, 1)
    again = OutputComparison(varying=found.varying)
    for source, engine in batches:
        again.add({"boxes": source}, {"boxes": engine}, 1)
    assert again.found().matched == pytest.approx((1 + 6 / 7) / 2)


def test_an_empty_output_is_no_error():
    nothing = {"y": np.ones((2, 3)), "z": np.ones((2, 0))}
    assert compared(nothing, nothing)[0].cosine_mean == pytest.approx(1.0)


def test_an_output_without_a_value_in_all_of_the_data_is_said_to_be_so():
    nothing = {"y": np.ones((2, 3)), "z": np.ones((2, 0))}
    facts, comparison = compared(nothing, nothing)
    assert facts.all_empty == ["z"]
    assert (
        "returns nothing in 'z', so nothing there was compared" in doubts(facts, Gates(), None)[0]
    )
    some = {"y": np.ones((2, 3)), "z": np.ones((2, 1))}
    comparison.add(some, some, 2)
    assert comparison.found().all_empty == []


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(("dtype", "figure"), [("float32", "cosine_mean"), ("int64", "equal")])
def test_an_output_without_a_value_in_some_batch_is_compared_in_the_others(first, dtype, figure):
    comparison = OutputComparison()
    for found in (first, 3 - first):
        outputs = {"y": np.ones((2, 4), "float32"), "z": np.ones((found, 4), dtype)}
        comparison.add(outputs, outputs | {"z": 0 * outputs["z"]}, 2)
    facts = comparison.found()
    assert (facts.samples, facts.all_empty) == (4, [])
    assert getattr(facts, figure) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_a_map_that_lost_all_but_the_background_is_doubtful_however_large_that_is(dtype):
    source = np.zeros((32, 20, 20), dtype)
    source[:, 3, :4] = 1
    facts = facts_of(source, np.zeros_like(source))
    assert facts.equal == pytest.approx(0.99)
    [doubt] = doubts(facts, Gates(), None)
    assert (
        "of the 128 integers in 'y' that aren't the source's most common one, the engine has 0.0%"
        in doubt
    )
    assert doubts(facts, Gates(outputs={"y": 0.02}), None) == []
    most = source.copy()
    most[:, 3, 0] = 0
    assert doubts(facts_of(source, most), Gates(), None) == []


def test_few_integers_beside_the_most_common_one_raise_no_doubt_of_their_own():
    source = np.zeros(300, np.int64)
    source[:3] = 1
    facts = facts_of(source, np.zeros_like(source))
    assert (facts.outputs[0].rare, facts.outputs[0].rare_equal) == (3, 0.0)
    assert doubts(facts, Gates(), None) == []


@pytest.mark.parametrize("odd", [-1, 1000, 2**62])
def test_integers_of_many_values_are_not_counted_by_value(odd):
    source = np.array([[0, 0, 0, odd]] * 8)
    facts = facts_of(source, source * 0)
    assert (facts.equal, facts.outputs[0].rare_equal) == (0.75, None)


def detections(samples=4, places=200):
    """Boxes in pixels and scores of five classes, most of them near zero: [samples, 9, places]."""
    boxes = rng.uniform(0, 640, (samples, 4, places))
    scores = rng.uniform(0, 1, (samples, 5, places)) ** 8
    return np.concatenate([boxes, scores], axis=1).astype(np.float32)


def without_scores(source):
    return np.concatenate([source[:, :4], 0 * source[:, 4:]], axis=1)


def without_a_class(source):
    engine = source.copy()
    engine[:, 6] = 0.01
    return engine


def with_scores_of_other_places(source):
    return np.concatenate([source[:, :4], source[:, 4:, ::-1]], axis=1)


@pytest.mark.parametrize(
    ("broken", "lost"),
    [(without_scores, 5), (without_a_class, 1), (with_scores_of_other_places, 5)],
)
@pytest.mark.parametrize("axis", [1, 2])
def test_a_detector_that_lost_its_scores_is_doubtful_though_its_boxes_are_right(broken, lost, axis):
    source = detections()
    engine = broken(source)
    if axis == 2:
        source, engine = source.swapaxes(1, 2), engine.swapaxes(1, 2)
    facts = facts_of(source, engine)
    assert facts.relative_error < 0.01
    assert (facts.outputs[0].parts_axis, facts.outputs[0].parts, facts.outputs[0].parts_lost) == (
        *(axis, 9),
        lost,
    )
    [doubt] = doubts(facts, QuantizedGates(), None)
    assert f"of the 9 parts of 'y' along axis {axis} that vary, the engine has lost {lost}" in doubt
    assert doubts(facts, Gates(outputs={"y": 0.02}), None) == []


def test_a_channel_that_shows_something_else_is_lost_though_the_others_outvote_it():
    source = rng.standard_normal((32, 40, 6, 6))
    engine = source + 0.01 * rng.standard_normal(source.shape)
    engine[:, 7] = -source[:, 7]
    facts = facts_of(source, engine)
    assert (facts.outputs[0].parts, facts.outputs[0].parts_lost) == (40, 1)
    assert any("along axis 1" in doubt for doubt in doubts(facts, QuantizedGates(), None))


def test_channels_that_rounding_outweighs_or_that_hardly_fire_are_not_lost():
    """One range for all channels: int8 leaves little of those that are small beside the rest."""
    sizes = np.geomspace(0.02, 20, 64)[:, None, None]
    source = sizes * rng.standard_normal((32, 64, 4, 4))
    source[:, 9] = 0.0
    source[:3, 9, 0, 0] = 0.05  # behind a ReLU
    source[:, 10] = 300 + 0.1 * source[:, 10]  # constant in fp16
    step = 20 / 127
    engine = source + rng.uniform(-step, step, source.shape)
    engine[:, 9], engine[:, 10] = 0.0, 300.0
    facts = facts_of(source, engine)
    assert facts.outputs[0].parts_lost == 0
    assert doubts(facts, QuantizedGates(), None) == []


def test_parts_are_those_of_all_batches_and_none_where_their_number_differs():
    source = detections(samples=8)
    comparison = OutputComparison()
    for at in range(0, 8, 2):
        comparison.add({"y": source[at : at + 2]}, {"y": without_scores(source[at : at + 2])}, 2)
    assert comparison.found().outputs[0].parts_lost == 5
    varied = OutputComparison()
    for places in (5, 7):
        scores = np.ones((2, 1000, places))
        varied.add({"y": scores}, {"y": 0 * scores}, 2)
    assert varied.found().outputs[0].parts is None


def test_what_all_outputs_share_hides_no_error():
    """Temperatures in kelvin: whatever becomes of the degrees, the cosine is 1."""
    source = 300 + rng.standard_normal((32, 4)).astype(np.float32)
    engine = 300 + rng.standard_normal((32, 4)).astype(np.float32)
    facts = facts_of(source[:, :, None], engine[:, :, None])
    assert facts.cosine_mean > 0.9999
    assert facts.relative_error > 1
    assert any("spread" in doubt for doubt in doubts(facts, Gates(), None))


def test_the_worst_of_several_outputs_counts():
    good = rng.standard_normal((8, 5, 2)).astype(np.float32)
    facts, _ = compared({"a": good, "b": good}, {"a": good, "b": -good})
    assert facts.cosine_mean == pytest.approx(-1.0)


def scores(samples, agreeing):
    source = np.zeros((samples, 10), np.float32)
    source[:, 0] = 1
    engine = source.copy()
    engine[agreeing:, 1] = 1.5
    return source, engine


def test_an_engine_that_picks_other_classes_is_doubtful():
    facts = facts_of(*scores(64, 12))
    refuse_broken(facts, None)  # not broken: its cosine is fair
    [first, *_] = doubts(facts, Gates(), None)
    assert "18.8% (98% is the gate) over 64 samples" in first
    assert facts.top1_or_tied == facts.top1_agreement == 12 / 64


def test_which_of_two_equal_scores_is_the_largest_raises_no_doubt():
    """As of an embedding, which has no classes at all."""
    source = rng.standard_normal((64, 384)).astype(np.float32)
    engine = source + rng.normal(0, 0.08, source.shape).astype(np.float32)
    facts = facts_of(source, engine)
    assert facts.top1_agreement < 0.95
    assert facts.top1_or_tied == 1.0
    assert doubts(facts, Gates(), None) == []


def test_directions_of_length_1_have_no_class_but_the_one_that_labels_give():
    source = rng.standard_normal((64, 256))
    source /= np.linalg.norm(source, axis=1, keepdims=True)
    engine = source + 0.02 * rng.standard_normal(source.shape) / 16
    facts = facts_of(source, engine)
    assert (facts.top1_agreement, facts.outputs[0].kind) == (None, "values")
    assert doubts(facts, QuantizedGates(), None) == []
    labels = source.argmax(axis=1)
    assert facts_of(source, engine, labels=labels).task.source == 1.0


def test_scores_of_one_batch_that_are_of_length_1_are_scores_with_those_of_the_next():
    comparison = OutputComparison()
    for length in (1.0, 3.0):
        scores = np.eye(4) * length - 0.0
        comparison.add({"y": scores - 0.1 * (length > 1)}, {"y": scores}, 4)
    assert comparison.found().top1_agreement == 1.0


def test_probabilities_are_the_classes_also_where_boxes_come_first():
    boxes = rng.standard_normal((32, 4)).astype(np.float32)
    probabilities = rng.dirichlet([0.1, 0.1], 32).astype(np.float32)
    facts, _ = compared(
        {"boxes": boxes, "classes": probabilities},
        {"boxes": -boxes, "classes": probabilities},
        labels=probabilities.argmax(axis=1),
    )
    assert (facts.top1_output, facts.top1_agreement) == ("classes", 1.0)
    assert facts.task.engine == 1.0


def test_a_binary_classifier_that_flips_is_doubtful():
    certain = np.tile(np.array([[0.99, 0.01]], np.float32), (40, 1))
    facts = facts_of(certain, np.where(np.arange(40)[:, None] < 8, certain[:, ::-1], certain))
    assert facts.top1_or_tied == 0.8
    assert doubts(facts, Gates(), None)


def test_few_samples_raise_no_doubt_of_their_own():
    facts = facts_of(*scores(32, 29))
    assert facts.top1_interval[1] > QuantizedGates().agreement
    assert not any("class" in doubt for doubt in doubts(facts, QuantizedGates(), None))


def test_a_drop_that_the_user_allows_outranks_likeness():
    source, engine = scores(64, 12)
    labels = np.where(np.arange(64) < 12, 0, 1)  # where they differ the engine is right
    facts = facts_of(source, engine, labels=labels)
    assert doubts(facts, Gates(), 0.01) == []
    with pytest.raises(AccuracyDropped, match="top-1 drops from"):
        refuse_broken(facts_of(source, engine, labels=np.zeros(64, np.int64)), 0.01)


def beside(engine, **more):
    """A classifier whose labels are right, and what an engine makes of an output beside its scores."""
    scores = rng.standard_normal((64, 6)).astype(np.float32)
    source = {"y": scores, "z": rng.standard_normal((64, 6)).astype(np.float32)}
    source |= {"k": rng.integers(0, 9, 64)}
    made = source | {name: made(source[name]) for name, made in engine.items()}
    return compared(source, made, labels=scores.argmax(axis=1), **more)[0]


def test_a_drop_that_the_user_allows_says_nothing_of_outputs_that_the_task_does_not_read():
    facts = beside({"z": np.zeros_like})
    assert [(one.name, one.in_task) for one in facts.outputs] == [
        ("y", True),
        ("z", False),
        ("k", False),
    ]
    assert facts.task.drop == 0.0
    with pytest.raises(AccuracyDropped, match=r"'z', which top-1 doesn't read.* is 0\.000 over 64"):
        refuse_broken(facts, 0.01)


@pytest.mark.parametrize("max_drop", [None, 0.01])
def test_an_output_beside_the_tasks_has_the_gate_for_errors(max_drop):
    facts = beside({"z": lambda z: z * 2})
    refuse_broken(facts, max_drop)
    [doubt] = doubts(facts, QuantizedGates(), max_drop)
    assert (
        "the error of 'z', which top-1 doesn't read, is 1 of its spread (0.35 is the gate)" in doubt
    )
    assert doubts(facts, QuantizedGates(outputs={"z": 2.0}), max_drop) == []
    assert doubts(beside({"y": lambda y: y * 2}), QuantizedGates(), max_drop) == []


@pytest.mark.parametrize("max_drop", [None, 0.01])
def test_integers_beside_the_tasks_output_have_the_gate_for_agreement(max_drop):
    [doubt] = doubts(beside({"k": lambda k: k + 1}), QuantizedGates(), max_drop)
    assert "0.0% (90% is the gate) over 64 samples" in doubt
    assert doubts(beside({}), QuantizedGates(), max_drop) == []


def test_figures_on_random_data_say_so():
    facts = facts_of(*scores(64, 12)).model_copy(update={"data": DataKind.RANDOM})
    assert "64 random samples" in doubts(facts, Gates(), None)[0]


def test_a_row_that_depends_on_its_neighbours_is_a_doubt():
    leak = BatchInvariance(batch=4, max_error=0.3, tolerance=1e-3, holds=False)
    facts = facts_of(*scores(8, 8)).model_copy(update={"batch_invariance": leak})
    assert "alone, first and last in a batch of 4" in doubts(facts, Gates(), None)[0]


def test_intervals_are_wilsons():
    # Source: Brown, Cai, DasGupta, Interval Estimation for a Binomial Proportion, 2001, formula (4).
    low, high = intervals.of_share(0.9, 10)
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    assert intervals.of_share(1.0, 5)[1] == 1.0
    assert intervals.of_mean(np.array([0.5])) is None
    low, high = intervals.of_mean(np.array([0.0, 1.0] * 50))
    assert math.isclose(high - low, 2 * 1.96 * 0.50252 / 10, rel_tol=1e-4)


def test_one_class_in_a_hundred_that_rounding_moves_is_no_difference():
    source = np.zeros(200, np.int64)
    engine = source.copy()
    engine[0] = 1
    assert difference({"y": source}, {"y": engine}).beyond(1e-3) is None
    engine[:10] = 1
    assert "5.0% of an output's integers" in difference({"y": source}, {"y": engine}).beyond(1e-3)


def test_classes_of_pixels_are_counted_and_not_kept():
    """A thousand masks of 512 × 512 would take 4 GB."""
    labels = rng.integers(0, 3, (8, 128, 128))
    comparison = OutputComparison(labels=labels)
    for start in range(0, 8, 2):
        scores = np.eye(3)[labels[start : start + 2]].transpose(0, 3, 1, 2)
        comparison.add({"y": scores}, {"y": np.roll(scores, 1, axis=1)}, 2)
    [output] = comparison._outputs.values()
    assert output._source == output._engine == []
    facts = comparison.found()
    assert (facts.task.source, facts.task.engine) == (1.0, 0.0)
    assert facts.top1_agreement is None


def test_an_output_that_lacks_a_labels_class_is_not_judged_by_it():
    labels = np.array([0, 4, 1, 2])
    few, many = (np.eye(classes)[[0, 3 % classes, 1, 2]] for classes in (3, 5))
    comparison = OutputComparison(labels=labels)
    comparison.add({"few": few, "many": many}, {"few": few, "many": many}, 4)
    assert comparison.found().task.source == 0.75
    comparison = OutputComparison(labels=labels)
    comparison.add({"few": few}, {"few": few}, 4)
    assert comparison.found().task is None
