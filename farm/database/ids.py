"""Ids that sort by time."""

from __future__ import annotations

import secrets
import time
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 16


def new_id() -> str:
    """A short id that sorts by time: 10 digits of milliseconds, 6 random ones (Crockford's base 32)."""
    return _id(time.time(), secrets.randbits(30))


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return len(text) == _LENGTH and set(text) <= set(_ALPHABET)


def begins_id(text: str) -> bool:
    """Whether a text can be an id's first characters, or all of them."""
    return 0 < len(text) <= _LENGTH and set(text) <= set(_ALPHABET)


def first_id(at: datetime) -> str:
    """A value that sorts before every id created from this time on."""
    return _id(at.timestamp(), 0)


def _id(at_s: float, chance: int) -> str:
    number = (int(at_s * 1000) << 30) | chance
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
