"""Limits the size of records, since the API reads and returns them repeatedly."""

from __future__ import annotations

from math import isfinite
from typing import Any

MAX_BYTES = 2**20  #: of a record as JSON
_MAX_VALUES = 100_000
_MAX_DEPTH = 16
_MAX_CHARS = 10_000
_MAX_NAME_CHARS = 4096
_LEAST, _MOST = -(2**63), 2**64


class TooMuch(ValueError):
    """The record is larger than, or different from, any that the farm makes."""


def check(value: Any) -> None:
    """Refuse values that are too deep, too many or too long, and numbers outside JSON or Python's ``int``.

    Raises:
        TooMuch
    """
    left: list[tuple[Any, int]] = [(value, 0)]
    seen = 0
    while left:
        one, depth = left.pop()
        seen += 1
        if isinstance(one, str):
            _check_text(one, _MAX_CHARS)
        elif isinstance(one, dict | list):
            if depth == _MAX_DEPTH:
                raise TooMuch(f"it is nested more than {_MAX_DEPTH} deep")
            if seen + len(left) + len(one) > _MAX_VALUES:
                raise TooMuch(f"it has more than {_MAX_VALUES} values")
            if isinstance(one, dict):
                for name in one:
                    _check_text(name, _MAX_NAME_CHARS)
                one = list(one.values())
            left += [(inner, depth + 1) for inner in one]
        elif isinstance(one, float):
            if not isfinite(one):
                raise TooMuch(f"{one} isn't a finite number")
        elif isinstance(one, int):
            if not _LEAST <= one < _MOST:
                raise TooMuch("it has a number of more than 64 bits")
        elif one is not None:
            raise TooMuch(f"a {type(one).__name__} isn't JSON")


def _check_text(text: Any, most: int) -> None:
    if not isinstance(text, str):
        raise TooMuch(f"{text!r} isn't a name")
    if len(text) > most:
        raise TooMuch(f"it has a string of {len(text)} characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TooMuch("it has a lone surrogate") from None


def fits(value: Any) -> bool:
    """Whether ``check`` accepts it."""
    try:
        check(value)
    except TooMuch:
        return False
    return True
