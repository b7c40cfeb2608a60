"""Celery's thread pool, which has the worker look for its next message as soon as a thread is free."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from celery.concurrency import thread
from kombu.asynchronous import get_event_loop


class Pool(thread.TaskPool):  # type: ignore[misc]
    """Without prefetching the consumer stops reading while all threads work.

    It looks again at the next turn of its event loop, which nothing would cause for up to a second: what ends
    a task runs in the task's thread.
    """

    def on_apply(self, *args: Any, **options: Any) -> thread.ApplyResult:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(_turn_the_loop)
        return result


def _turn_the_loop(_: Future[None]) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    pass
