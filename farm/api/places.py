"""A limited number of places, given in the order of asking."""

from __future__ import annotations

import threading
from collections import deque


class Places:
    """A semaphore that is fair.

    Python's gives a place that becomes free to whoever asks next: one that waits for it may find it taken
    again and again, and under load the slowest requests are those.
    """

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._free = number
        self._line: deque[threading.Lock] = deque()

    def acquire(self, *, timeout: float) -> bool:
        """Take a place within so many seconds; return whether there was one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._line.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)
                return False
        return True  # it was given just now

    def release(self) -> None:
        """Give a place back: the one who has waited longest has it at once."""
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._free += 1
