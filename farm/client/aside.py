"""One call at a time beside its caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Aside:
    """A thread for calls that give the interpreter away while they run: one at a time.

    Parameters:
        name: the thread's.
    """

    def __init__(self, name: str) -> None:
        self._running: Future[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def close(self) -> None:
        """Wait for what runs, whatever becomes of it, and end the thread."""
        self._thread.shutdown()

    @property
    def is_idle(self) -> bool:
        return self._running is None or self._running.done()

    def start(self, call: Callable[..., Any], *args: Any) -> None:
        """Run it, once the call before it has ended.

        Raises:
            What the call before raised; then this one isn't run.
        """
        self.wait()
        self._running = self._thread.submit(call, *args)

    def wait(self) -> None:
        """Return when nothing runs.

        Raises:
            What the last call raised, once.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()
