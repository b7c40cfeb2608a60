"""Protobuf's wire format: what it says is found, and hostile bytes cost no more than their length."""

from __future__ import annotations

import pytest

from farm.formats.protobuf import Effort, MalformedMessage, TooManyFields, fields

#: A number, a name, eight and four bytes that are passed over, and an empty message.
MESSAGE = bytes.fromhex(
    "08 96 01  12 03 61 62 63  19 00 01 02 03 04 05 06 07  25 00 01 02 03  32 00"
)


def found(data: bytes, effort: Effort | None = None) -> list[tuple[int, bytes]]:
    return [(number, data[a:b]) for number, a, b in fields(data, 0, len(data), effort)]


def test_fields_with_a_length_are_found_and_the_others_passed_over() -> None:
    assert found(MESSAGE) == [(2, b"abc"), (6, b"")]
    assert found(b"") == []


def test_a_part_of_a_file_is_read_as_a_message_of_its_own() -> None:
    data = b"junk" + MESSAGE + b"\xff junk"
    assert [number for number, _, _ in fields(data, 4, 4 + len(MESSAGE))] == [2, 6]


def test_numbers_of_fields_and_lengths_may_have_several_bytes() -> None:
    data = bytes.fromhex("82 7d c8 01") + b"x" * 200
    assert found(data) == [(2000, b"x" * 200)]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("12 04 61 62 63", "cut off"),
        ("12 ff ff ff ff ff ff ff ff 7f", "cut off"),
        ("12", "cut off"),
        ("08 96", "cut off"),
        ("08 ff ff ff ff ff ff ff ff ff ff 01", "too long"),
        ("0b 0c", "unknown kind 3"),
        ("0f", "unknown kind 7"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(data: str, told: str) -> None:
    with pytest.raises(MalformedMessage, match=told):
        found(bytes.fromhex(data))


def test_a_length_leads_nowhere_outside_its_message() -> None:
    data = bytes.fromhex("12 04 61 62") + b"of another message"
    with pytest.raises(MalformedMessage, match="cut off"):
        list(fields(data, 0, 4))


def test_no_more_is_looked_at_than_the_effort_allows_over_all_messages() -> None:
    effort = Effort(7)
    assert found(MESSAGE, effort) == found(MESSAGE)
    assert effort.left == 2
    with pytest.raises(TooManyFields):
        found(MESSAGE, effort)
