"""Which samples hold the largest values."""

from __future__ import annotations

import numpy as np
import pytest

from workers.quantize.peaks import Peaks


def peaks(block: int = 1, **tensors: list[float]) -> Peaks:
    """Seen in two pieces."""
    found = Peaks(block)
    for part in (slice(0, 2), slice(2, None)):
        for name, values in tensors.items():
            piece = np.array(values[part], np.float32)
            found.saw(name, piece, len(piece))
    return found


@pytest.mark.parametrize(
    ("block", "most", "rows"),
    [
        (1, 1, [3]),
        (1, 2, [0, 3]),
        (1, 9, [0, 3, 4]),
        (2, 1, [2, 3]),
        (2, 4, [0, 1, 2, 3]),
        (3, 3, [2, 3, 4]),
        (9, 1, [0, 1, 2, 3, 4]),
    ],
)
def test_samples_come_first_that_hold_the_largest_values_of_the_most_tensors(block, most, rows):
    found = peaks(block, a=[1, 0, 2, 9, 0], b=[0, 0, 0, 4, 1], c=[7, 0, 0, 1, 0], d=[0, 0, 0, 0, 5])
    assert found.rows(most).tolist() == rows
    assert found.tops() == {"a": 9, "b": 4, "c": 7, "d": 5}


def test_samples_near_the_largest_value_of_any_tensor_are_marked():
    found = peaks(a=[1, 9.95, 2, 10, 0], b=[0.5, 0, 0, 0, 0])
    assert found.near(0.01).tolist() == [True, True, False, True, False]
    assert found.near(0.001).tolist() == [True, False, False, True, False]


def test_of_level_samples_the_first_is_marked_and_of_zeros_none():
    found = peaks(a=[6, 6, 6, 6, 6], b=[0, 0, 0, 0, 0], c=[1, 3, 3, 2, 3])
    assert found.near(0.01).tolist() == [True, True, False, False, False]


def test_a_value_of_no_one_sample_counts_for_all_that_ran_with_it():
    found = Peaks()
    found.saw("a", np.float32([1]), 2)
    found.saw("a", np.float32([3]), 3)
    assert found.rows(9).tolist() == [2]
    assert found.tops() == {"a": 3}


def test_infinite_values_and_nan_are_told_and_hold_no_peak():
    found = peaks(a=[1, np.inf, 2, np.nan, 0])
    assert not found.are_finite
    assert found.tops() == {"a": 2}
    assert peaks(a=[1, 2, 3]).are_finite
