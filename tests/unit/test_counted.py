"""Numbers of things, in words."""

from __future__ import annotations

import pytest

from farm.specs.counted import counted


@pytest.mark.parametrize(
    ("number", "words", "told"),
    [
        (0, ["engine"], "0 engines"),
        (1, ["engine"], "1 engine"),
        (2, ["engine"], "2 engines"),
        (1, ["entry", "entries"], "1 entry"),
        (3, ["entry", "entries"], "3 entries"),
    ],
)
def test_one_thing_is_told_in_the_singular(number: int, words: list[str], told: str) -> None:
    assert counted(number, *words) == told
