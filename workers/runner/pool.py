"""Celery's thread pool, which has the worker look for its next message as soon as there is room for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from celery.concurrency import thread
from kombu.asynchronous import get_event_loop


class Left:
    """Tasks whose job has left its slot: what it made is being stored, and the next job may begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    @contextmanager
    def leaving(self) -> Iterator[Callable[[], None]]:
        """Yields what leaves the slot, for the rest of the block."""
        has_left = False

        def leave() -> None:
            nonlocal has_left
            if not has_left:
                has_left = True
                self._add(1)
                turn_the_loop()

        try:
            yield leave
        finally:
            if has_left:
                self._add(-1)

    def _add(self, number: int) -> None:
        with self._lock:
            self.count += number


class Pool(thread.TaskPool):  # type: ignore[misc]
    """Without prefetching the consumer stops reading while all threads work.

    It looks again at the next turn of its event loop, which nothing would cause for up to a second: what ends
    a task, or leaves its slot, runs in the task's thread. Besides the jobs in the slots, as many may store
    what they made.
    """

    left = Left()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor = ThreadPoolExecutor(max_workers=2 * self.limit)

    @property
    def num_processes(self) -> int:
        """How many messages the worker may be at, now."""
        return int(self.limit + min(self.left.count, self.limit))

    def on_apply(self, *args: Any, **options: Any) -> thread.ApplyResult:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(turn_the_loop)
        return result


def pool_of(left: Left) -> type[Pool]:
    """The pool of a worker whose tasks leave their slots so."""
    return type("Pool", (Pool,), {"left": left})


def turn_the_loop(_: Future[None] | None = None) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    pass
