"""Digests of files, as the farm writes them: ``sha256:`` and 64 hexadecimal digits."""

from __future__ import annotations

import re
from typing import Any

from farm.errors import InvalidRequest

PREFIX = "sha256:"
_DIGITS = 64


def means(text: str) -> bool:
    """Whether somebody means a digest, and not a file or a name."""
    return text.lower().startswith(PREFIX)


def parse(text: str) -> str:
    """A digest in lower case.

    Raises:
        InvalidRequest: it can't be one.
    """
    low = text.strip().lower()
    why = fault(low)
    if why is not None:
        begins = re.match(r"[0-9a-f]{8}", low.removeprefix(PREFIX))
        search = f"farm search {begins[0]}" if begins else "farm search 3f2a90ab"
        raise InvalidRequest(
            f"{text[:100]!r} isn't a digest: {why}",
            hint=f"copy it whole, or find it by its first 8 digits or more: {search}",
        )
    return low


def fault(digest: str) -> str | None:
    """What keeps a lower-case text from being a digest; None if it is one."""
    if not digest.startswith(PREFIX):
        return f"it begins with {PREFIX}"
    digits = digest.removeprefix(PREFIX)
    other = re.search(r"[^0-9a-f]", digits)
    if other:
        return f"{other[0]!r} is no hexadecimal digit"
    if len(digits) != _DIGITS:
        return f"after {PREFIX} come {_DIGITS} hexadecimal digits, and these are {len(digits)}"
    return None


def checked(value: Any) -> Any:
    """For a field: a digest in lower case.

    Raises:
        ValueError: it can't be one.
    """
    if not isinstance(value, str):
        return value
    low = value.strip().lower()
    why = fault(low)
    if why is not None:
        raise ValueError(f"{value[:100]!r} isn't a digest: {why}")
    return low
