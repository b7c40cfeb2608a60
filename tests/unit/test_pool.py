"""The worker's thread pool turns Celery's event loop when a thread becomes free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from celery.concurrency import get_implementation
from kombu.asynchronous import get_event_loop, set_event_loop

from workers.runner.pool import Left, Pool, pool_of

pytestmark = pytest.mark.timeout(300)


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


def test_a_job_that_has_left_its_slot_makes_room_for_a_message_until_its_task_ends(
    loop: Loop,
) -> None:
    left = Left()
    pool = pool_of(left)(2)
    assert pool.num_processes == 2
    with left.leaving() as leave:
        assert pool.num_processes == 2
        leave()
        leave()  # again: it has left already
        assert pool.num_processes == 3
        loop.turns.get()()
        assert loop.turns.empty()
    assert pool.num_processes == 2
    pool.on_stop()


def test_no_more_jobs_store_what_they_made_than_there_are_slots(loop: Loop) -> None:
    left = Left()
    pool = pool_of(left)(1)
    with left.leaving() as first, left.leaving() as second:
        first()
        second()
        assert pool.num_processes == 2
    assert pool.num_processes == 1
    pool.on_stop()


def test_the_next_task_begins_while_one_that_left_its_slot_goes_on(loop: Loop) -> None:
    left, go_on = Left(), threading.Event()
    pool = pool_of(left)(1)
    ended: SimpleQueue[str] = SimpleQueue()

    def store() -> str:
        with left.leaving() as leave:
            leave()
            assert go_on.wait(120)
        return "stored"

    pool.on_apply(store, (), {}, callback=ended.put)
    loop.turns.get()()
    pool.on_apply(lambda: "next", (), {}, callback=ended.put)
    assert ended.get() == "next"
    go_on.set()
    assert ended.get() == "stored"
    pool.on_stop()


def test_celery_takes_the_pool_as_it_is() -> None:
    pool = pool_of(Left())
    assert get_implementation(pool) is pool
