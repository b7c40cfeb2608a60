"""Children of one worker that share a CPU: one that measures has the others paused."""

from __future__ import annotations

import threading
from typing import Protocol


class Pausable(Protocol):
    """What siblings need of a child."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Siblings:
    """The children of one worker that run side by side on one CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Pausable] = set()
        self._quiet_for: Pausable | None = None

    def enter(self, child: Pausable) -> None:
        with self._lock:
            self._children.add(child)
            self._keep_quiet(child)

    def leave(self, child: Pausable) -> None:
        with self._lock:
            self._children.discard(child)
            self._end_quiet(child)

    def pause_others(self, child: Pausable) -> bool:
        """Pause the others and return True, or return False while another child has quiet."""
        with self._lock:
            if self._quiet_for is None:
                self._quiet_for = child
                for other in self._children:
                    self._keep_quiet(other)
            return self._quiet_for is child

    def resume(self, child: Pausable) -> None:
        """Resume the others, if this child had quiet."""
        with self._lock:
            self._end_quiet(child)

    def keep_quiet(self, child: Pausable) -> None:
        """Stop what this child has started since it was paused: its guard still runs and may have been about
        to start it."""
        with self._lock:
            self._keep_quiet(child)

    def _keep_quiet(self, child: Pausable) -> None:
        if self._quiet_for not in (None, child):
            child.pause()

    def _end_quiet(self, child: Pausable) -> None:
        if self._quiet_for is child:
            self._quiet_for = None
            for other in self._children - {child}:
                other.resume()
