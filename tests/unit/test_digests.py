"""Digests: read in any case, and refused with what they lack."""

from __future__ import annotations

import json

import pytest

from farm.cli import exits
from farm.errors import InvalidRequest
from farm.specs import digests
from tests.unit.conftest import Run

WHOLE = "sha256:" + "3f2a90ab" * 8


def test_a_digest_is_read_in_any_case() -> None:
    assert digests.parse(WHOLE.upper()) == WHOLE
    assert digests.means("SHA256:00")
    assert not digests.means("digits.pt2")


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("sha256:00", "after sha256: come 64 hexadecimal digits, and these are 2", "3f2a90ab"),
        ("sha256:", "after sha256: come 64 hexadecimal digits, and these are 0", "3f2a90ab"),
        (f"{WHOLE}0", "these are 65", "farm search 3f2a90ab"),
        ("sha256:DEADBEEF01", "these are 10", "farm search deadbeef"),
        ("sha256:" + "g" * 64, "'g' is no hexadecimal digit", "farm search"),
    ],
)
def test_what_is_no_digest_is_refused_with_what_it_lacks(text: str, why: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        digests.parse(text)
    assert why in told.value.detail
    assert hint in str(told.value.hint)


@pytest.mark.parametrize(
    "words",
    [
        ["which", "sha256:00"],
        ["delete", "sha256:00", "--yes"],
        ["submit", "sha256:00", "--name", "digits", "--gpu", "l4"],
        ["bench", "sha256:00", "--name", "digits", "--gpu", "l4"],
    ],
)
def test_commands_refuse_what_is_no_digest_with_a_hint(run: Run, words: list[str]) -> None:
    result = run(*words, "--json")
    told = json.loads(result.stderr)
    assert result.exit_code == exits.USAGE
    assert told["detail"] == (
        "'sha256:00' isn't a digest: after sha256: come 64 hexadecimal digits, and these are 2"
    )
    assert "farm search" in told["hint"]
