"""The worker's thread pool turns Celery's event loop when a thread becomes free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from kombu.asynchronous import get_event_loop, set_event_loop

from workers.runner.pool import Pool

pytestmark = pytest.mark.timeout(60)


class Loop:
    """Takes what it is to call, as Celery's does."""

    def __init__(self) -> None:
        self.turns: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.turns.put(callback)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(1)
    yield made
    made.on_stop()


@pytest.fixture
def loop() -> Iterator[Loop]:
    before, made = get_event_loop(), Loop()
    set_event_loop(made)
    yield made
    set_event_loop(before)


def test_the_loop_turns_once_a_task_has_given_its_place_back(pool: Pool, loop: Loop) -> None:
    given_back: list[str] = []
    for n in range(3):
        pool.on_apply(lambda: "done", (), {}, callback=given_back.append)
        loop.turns.get()()
        assert given_back == ["done"] * (n + 1)


def test_the_loop_turns_after_a_task_that_failed(pool: Pool, loop: Loop) -> None:
    def fail(_: object) -> None:
        raise ValueError("no")

    pool.on_apply(lambda: None, (), {}, callback=fail)
    loop.turns.get()()


def test_a_pool_without_a_loop_works(pool: Pool) -> None:
    before = get_event_loop()
    set_event_loop(None)
    try:
        ended: SimpleQueue[None] = SimpleQueue()
        pool.on_apply(lambda: None, (), {}, callback=ended.put)
        assert ended.get() is None
    finally:
        set_event_loop(before)
