"""Places are given in the order of asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from farm.api.places import Places

pytestmark = pytest.mark.timeout(300)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def ask(places: Places, name: str, given: list[str]) -> threading.Thread:
    """Ask for a place in a thread; return once it is in line."""
    before = len(places._line)

    def wait() -> None:
        assert places.acquire(timeout=240)
        given.append(name)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(places._line) > before)
    return thread


def test_who_has_waited_longest_is_next_even_if_another_asks_at_that_moment() -> None:
    places, given = Places(1), list[str]()
    assert places.acquire(timeout=0)
    waiting = [ask(places, name, given) for name in ("first", "second")]
    places.release()
    assert not places.acquire(timeout=0)
    until(lambda: given == ["first"])
    places.release()
    until(lambda: given == ["first", "second"])
    places.release()
    assert places.acquire(timeout=0)
    for thread in waiting:
        thread.join()


def test_who_gives_up_leaves_the_line() -> None:
    places = Places(2)
    assert places.acquire(timeout=0)
    assert places.acquire(timeout=0)
    assert not places.acquire(timeout=0.001)
    places.release()
    assert places.acquire(timeout=0)
    assert not places.acquire(timeout=0)


def test_never_more_hold_one_than_there_are() -> None:
    places, lock, inside, most = Places(3), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            if not places.acquire(timeout=0.0005):
                continue
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0)
            with lock:
                inside -= 1
            places.release()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert all(places.acquire(timeout=0) for _ in range(3))
    assert not places.acquire(timeout=0)
