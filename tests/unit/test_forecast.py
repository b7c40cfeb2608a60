"""What jobs will take, as told by their like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.planning.forecast import FURTHEST, MOST, Past, Range, forecast

MB = 10**6
HERE, THERE = "tensorrt:sm_89", "tensorrt:sm_90"


def past(size=100 * MB, took_s=10.0, target=HERE, peak=None, number=1) -> Past:
    return Past(id=number, source_bytes=size, target=target, took_s=took_s, peak_memory_bytes=peak)


def many(*took_s: float, **more) -> list[Past]:
    return [past(took_s=one, number=n, **more) for n, one in enumerate(took_s)]


@pytest.mark.parametrize(
    ("of", "jobs", "took"),
    [
        pytest.param([], None, None, id="nothing has run"),
        pytest.param(many(10), 1, Range(10), id="one tells no range"),
        pytest.param(many(10, 20), 2, Range(15), id="nor do two"),
        pytest.param(many(10, 20, 30), 3, Range(20, 10, 30), id="three do"),
        pytest.param(
            many(*range(1, 11)),
            10,
            Range(*map(pytest.approx, (5.5, 1.5, 9.5))),
            id="ten tell the 10th and 90th percentile",
        ),
        pytest.param(many(10, size=900 * MB), None, None, id="nine times as large is no like"),
        pytest.param(many(10, size=700 * MB), 1, Range(10), id="seven times is"),
        pytest.param(many(10, size=0), None, None, id="nothing is like an empty file"),
    ],
)
def test_like_jobs_tell_how_long_it_takes(of, jobs, took):
    found = forecast(100 * MB, HERE, of)
    assert (found and found.jobs, found and found.took_s) == (jobs, took)


@pytest.mark.parametrize(
    "unlike",
    [
        pytest.param({"size": 200 * MB}, id="of another size"),
        pytest.param({"target": THERE}, id="for another GPU"),
    ],
)
def test_the_nearest_weighs_most(unlike):
    found = forecast(100 * MB, HERE, [*many(10), *many(40, **unlike)])
    assert found.jobs == 2
    assert 10 < found.took_s.expected < 13


def test_of_many_the_nearest_count_and_of_these_the_newest():
    far = [past(size=200 * MB, took_s=99.0, number=n) for n in range(5)]
    near = [past(took_s=float(n), number=n) for n in range(2 * MOST)]
    found = forecast(100 * MB, HERE, far + near)
    assert found.jobs == MOST
    assert found.took_s.low >= MOST


def test_memory_is_told_by_those_that_recorded_it():
    of = [past(peak=10**9), past(peak=None, number=2), past(peak=3 * 10**9, number=3)]
    found = forecast(100 * MB, HERE, of)
    assert (found.jobs, found.peak_memory_bytes) == (3, Range(2 * 10**9))
    assert forecast(100 * MB, HERE, many(1, 2)).peak_memory_bytes is None


@given(
    st.lists(
        st.builds(
            Past,
            id=st.integers(1, 9),
            source_bytes=st.integers(0, 2**60),
            target=st.sampled_from([None, HERE, THERE]),
            took_s=st.floats(0, 1e6),
            peak_memory_bytes=st.none() | st.integers(0, 2**60),
        )
    ),
    st.integers(0, 2**60),
)
def test_a_forecast_is_within_what_its_like_took(of, size):
    found = forecast(size, HERE, of)
    like = [
        one.took_s
        for one in of
        if max(one.source_bytes, 1) <= FURTHEST * max(size, 1) * 1.01
        and max(size, 1) <= FURTHEST * max(one.source_bytes, 1) * 1.01
    ]
    if found is None:
        return
    expected, low, high = found.took_s
    slack = 1e-9 * max(like)
    assert min(like) - slack <= expected <= max(like) + slack
    if low is not None:
        assert min(like) - slack <= low <= expected <= high <= max(like) + slack
