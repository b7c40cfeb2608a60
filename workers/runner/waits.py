"""Waits between tries: each twice as long as the one before, up to the longest."""

from __future__ import annotations

from collections.abc import Iterator

#: Between looks at jobs that others have locked: the first wait, and the longest.
LOCKED_S = (0.01, 0.3)


def doubling(first_s: float, longest_s: float) -> Iterator[float]:
    """Seconds to wait, without an end."""
    wait_s = first_s
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, longest_s)
