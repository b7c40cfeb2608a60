"""Rate limit for what a job makes its worker process."""

from __future__ import annotations

import time


class Pace:
    """A rate per second with a burst after a pause. Beyond it, the caller waits."""

    def __init__(self, per_s: float, *, at_once: float | None = None) -> None:
        self._per_s = per_s
        self._most = per_s if at_once is None else at_once
        self._left, self._at = self._most, time.monotonic()

    def may(self) -> bool:
        """Whether it's time for more."""
        at = time.monotonic()
        self._left = min(self._most, self._left + self._per_s * (at - self._at))
        self._at = at
        return self._left > 0

    def spend(self, amount: float) -> None:
        self._left -= amount
