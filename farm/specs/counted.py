"""Numbers of things, in words: ``1 engine``, ``2 engines``."""

from __future__ import annotations


def counted(number: int, one: str, several: str | None = None) -> str:
    """
    Parameters:
        one: what one of them is called.
        several: what others are called; by default with an ``s``.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"
