"""Histograms of activations, and the thresholds chosen from them, beside references in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.quantize import thresholds, trials
from workers.quantize.activations import held_out
from workers.quantize.histograms import Histogram, edges

Values = NDArray[np.float32]

any_floats = st.lists(st.floats(width=32), max_size=60)


def histogram(*parts: Values | list[float]) -> Histogram:
    found = Histogram.empty(counted=True)
    for part in parts:
        found.add(np.asarray(part, np.float32))
    return found


def same(one: Histogram, other: Histogram) -> bool:
    return (
        (one.lowest, one.highest, one.not_finite) == (other.lowest, other.highest, other.not_finite)
    ) and np.array_equal(one.counts, other.counts)


@given(any_floats, st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=5))
def test_counts_depend_neither_on_the_order_of_values_nor_on_their_batches(
    values: list[float], random: object, cuts: list[int]
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [shuffled[a:b] for a, b in pairwise(places)]
    whole = histogram(values)
    assert same(histogram(*parts), whole)
    merged = Histogram.empty(counted=True)
    for part in parts:
        merged = merged.merged(histogram(part))
    assert same(merged, whole)


@given(any_floats)
def test_every_finite_value_is_counted_in_the_bin_that_holds_it(values: list[float]) -> None:
    found = histogram(values)
    finite = np.abs(np.array([value for value in values if np.isfinite(value)], np.float64))
    assert found.counts is not None
    assert int(found.counts.sum()) == finite.size
    assert found.not_finite == len(values) - finite.size
    lower = edges(np.arange(0x7F80))
    at = np.searchsorted(lower, finite, side="right") - 1
    assert np.array_equal(np.flatnonzero(found.counts), np.unique(at))
    assert float(found.most) == finite.max(initial=0)


def test_extremes_without_counts_are_those_of_a_histogram() -> None:
    values = np.random.default_rng(0).normal(3, 9, 1000).astype(np.float32)
    bare = Histogram.empty(counted=False)
    bare.add(values)
    assert (bare.lowest, bare.highest) == (values.min(), values.max())
    assert bare.most == np.abs(values).max()


SHAPES = {
    "normal": lambda rng: rng.standard_normal(4000),
    "relu": lambda rng: np.maximum(rng.standard_normal(4000), 0),
    "laplace": lambda rng: rng.laplace(size=4000),
    "heavy": lambda rng: rng.standard_t(2, size=4000),
    "uniform": lambda rng: rng.random(4000),
    "outlier": lambda rng: np.append(rng.standard_normal(4000), 90.0),
    "wide": lambda rng: rng.standard_normal(4000) * 1e30,
    "narrow": lambda rng: rng.standard_normal(4000) * 1e-30,
}


@pytest.fixture(params=SHAPES, name="values")
def _values(request: pytest.FixtureRequest) -> Values:
    return SHAPES[request.param](np.random.default_rng(7)).astype(np.float32)


def quantised_error(values: Values, threshold: float) -> float:
    """The mean squared error, from the values themselves in float64."""
    wide = values.astype(np.float64)
    step = threshold / thresholds.LEVELS
    kept = np.clip(np.rint(wide / step), -thresholds.LEVELS, thresholds.LEVELS) * step
    return float(np.mean((wide - kept) ** 2))


def test_errors_are_those_of_the_values_themselves(values: Values) -> None:
    found = histogram(values)
    tried = float(found.most) * np.array([1.0, 0.7, 0.3, 0.1])
    expected = [quantised_error(values, threshold) for threshold in tried]
    assert thresholds.errors(found, tried) == pytest.approx(expected, rel=0.08)


def test_mse_finds_the_threshold_with_the_least_error(values: Values) -> None:
    found = histogram(values)
    tried = float(found.most) * 2.0 ** -(np.arange(0, 6, 1 / 64))
    least = min(quantised_error(values, threshold) for threshold in tried)
    assert quantised_error(values, thresholds.least_error(found)) <= least * 1.05


@pytest.mark.parametrize("percent", [90.01, 99.01, 99.89])
def test_a_percentile_is_that_of_the_magnitudes_to_a_bin(values: Values, percent: float) -> None:
    expected = np.percentile(np.abs(values.astype(np.float64)), percent, method="inverted_cdf")
    found = thresholds.percentile(histogram(values), percent)
    assert found == pytest.approx(expected, rel=1 / 128)


def reference_entropy(values: Values) -> float:
    """Migacz's calibrator on a histogram of the values themselves."""
    wide = np.abs(values.astype(np.float64))
    counts, places = np.histogram(wide, 2048, (0, wide.max()))
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    best = (np.inf, 0)
    for kept in range(128, 2049, 16):
        reference = bins[:kept].copy()
        level = np.zeros(kept)
        for n in range(128):
            part = slice(n * kept // 128, (n + 1) * kept // 128)
            there = reference[part] > 0
            if there.any():
                level[part] = there * (reference[part].sum() / there.sum())
        reference[-1] += bins[kept:].sum()
        p, q = reference / reference.sum(), level / level.sum()
        seen = p > 0
        lost = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))
        best = min(best, (lost, -kept))
    return float(places[-best[1]])


@pytest.mark.parametrize("shape", ["normal", "relu", "laplace"])
def test_entropy_chooses_about_as_the_reference_does(shape: str) -> None:
    values = np.concatenate(
        [SHAPES[shape](np.random.default_rng(seed)) for seed in range(100)]
    ).astype(np.float32)
    assert thresholds.entropy(histogram(values)) == pytest.approx(
        reference_entropy(values), rel=0.15
    )


def test_entropy_is_not_max_in_disguise() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 40.0).astype(np.float32)
    found = histogram(values)
    assert thresholds.maximum(found) == 40.0
    assert 3.0 < thresholds.entropy(found) < 10.0


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.nan, np.inf]])
def test_no_values_but_zeros_give_no_threshold(values: list[float]) -> None:
    found = histogram(values)
    assert [method(found) for method in thresholds.methods(None).values()] == [0.0] * 4


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50))
def test_no_threshold_is_beyond_the_largest_value(values: list[float]) -> None:
    found = histogram(values)
    for name, method in thresholds.methods(None).items():
        assert 0 <= method(found) <= float(found.most), name


def test_the_method_is_the_one_that_errs_least_on_what_was_held_out() -> None:
    rng = np.random.default_rng(0)
    plain = rng.standard_normal(20_000).astype(np.float32)
    spiked = np.append(plain, np.float32(60))
    methods = thresholds.methods(None)
    assert thresholds.chosen(histogram(spiked), histogram(plain), methods) != "max"
    # Held-out values that reach as far as the spike are not to be clipped.
    assert thresholds.chosen(histogram(spiked), histogram(plain * 15), methods) == "max"


@given(st.integers(0, 200), st.integers(1, 9))
def test_whole_blocks_are_held_out_and_the_rest_fits(count: int, block: int) -> None:
    marks = held_out(count, block)
    assert marks.size == count
    blocks = marks[: count // block * block].reshape(-1, block)
    assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()
    assert marks.sum() <= max(count / 2, 0)
    if count >= 2 * block:
        assert 0 < marks.sum() < count
    assert np.array_equal(marks, held_out(count, block))


@pytest.mark.parametrize(
    ("expected", "made", "distance"),
    [
        ([[1.0, 3.0]], [[1.0, 3.0]], 0.0),
        ([[1.0, 3.0]], [[2.0, 3.0]], 0.5),
        ([[1.0, 3.0]], [[1.0, np.nan]], np.inf),
        ([[np.nan, 3.0, 1.0]], [[0.0, 3.0, 1.0]], 0.0),
        ([[2.0]], [[1.0]], 0.25),
        ([1.0, 2.0], [1.0], 1.0),
        ([], [], 0.0),
    ],
)
def test_outputs_are_as_far_apart_as_their_error_over_their_spread(
    expected: list[float], made: list[float], distance: float
) -> None:
    outputs = [[{"y": np.array(value, np.float32)}] for value in (expected, made)]
    assert trials.distance(*outputs) == pytest.approx(distance)


def test_integer_outputs_are_as_far_apart_as_they_differ() -> None:
    one, other = {"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 5])}
    assert trials.distance([one], [other]) == 0.25


def test_the_distance_does_not_depend_on_batches() -> None:
    rng = np.random.default_rng(0)
    whole = [rng.standard_normal((12, 5)).astype(np.float32) for _ in range(2)]
    parts = [[{"y": rows} for rows in np.split(each, [3, 4, 9])] for each in whole]
    assert trials.distance(*parts) == trials.distance(*([{"y": each}] for each in whole))


def test_clipping_weighs_more_where_asked() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    found = histogram(values)
    mild, sharp = (thresholds.least_error(found, weight) for weight in (2.0, 1.0))
    assert sharp < mild < found.most
