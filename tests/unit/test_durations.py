"""Durations are read and told as people write them."""

from __future__ import annotations

import pytest

from farm.errors import InvalidRequest
from farm.specs import durations


@pytest.mark.parametrize(
    ("text", "seconds", "told"),
    [
        ("0s", 0, "0 s"),
        ("1s", 1, "1 s"),
        ("90s", 90, "1 min 30 s"),
        ("90m", 5400, "90 min"),
        ("36H", 129_600, "36 h"),
        ("1d", 86400, "1 day"),
        ("90d", 7_776_000, "90 days"),
    ],
)
def test_a_duration_is_told_in_the_units_of_people(text, seconds, told):
    assert durations.parse(text) == seconds
    # As a rule of retention keeps it: in days.
    assert durations.told(seconds / 86400 * 86400) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "0.25 s"), (3725, "1 h 02 min"), (86400 * 3 + 3600 * 4 + 5, "3 days 04 h")],
)
def test_what_is_whole_in_no_unit_is_told_by_two(seconds, told):
    assert durations.told(seconds) == told


@pytest.mark.parametrize("text", ["", "d", "1", "1.5h", "-1d", "²d", "1 w", "never"])
def test_what_is_no_duration_is_refused_with_the_units(text):
    with pytest.raises(InvalidRequest) as told:
        durations.parse(text)
    assert told.value.hint == "use a number and s, m, h or d: 24h"
