"""What a client tries again, how often, and how long it waits in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice

import httpx2
import pytest
import stamina

from farm.client import Backoff, Farm
from farm.errors import FarmError, NotFound, Unavailable

BUSY = {"code": "busy", "detail": "the farm is full"}


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def farm(
    answer: Callable[[httpx2.Request], httpx2.Response], backoff: Backoff | None = None
) -> Farm:
    return Farm(
        "http://farm.example", key="farm_a", backoff=backoff, transport=httpx2.MockTransport(answer)
    )


def full(status: int = 503, **headers: str) -> Callable[[httpx2.Request], httpx2.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx2.Response(status, headers=named, json=BUSY)


def test_waits_are_doubled_with_chance_in_them_up_to_the_longest(naps: list[float]) -> None:
    with pytest.raises(Unavailable):
        farm(full(), Backoff(attempts=6, first_s=1, longest_s=6)).workers()
    assert len(naps) == 5
    for nap, least in zip(naps, (1, 2, 4, 6, 6), strict=True):
        assert least <= nap <= min(least + 1, 6)


def test_two_clients_that_lost_a_farm_together_do_not_come_back_together(
    naps: list[float],
) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable):
            farm(full(), Backoff(attempts=2)).workers()
    assert naps[0] != naps[1]


@pytest.mark.parametrize("status", [429, 503])
def test_a_farm_that_says_how_long_to_wait_is_obeyed(naps: list[float], status: int) -> None:
    with pytest.raises(Unavailable):
        farm(full(status, Retry_After="3"), Backoff(attempts=3)).workers()
    assert len(naps) == 2
    assert all(3 <= nap <= 3.2 for nap in naps)


@pytest.mark.parametrize("asked", ["86400", "inf"])
def test_nobody_is_kept_waiting_for_hours(naps: list[float], asked: str) -> None:
    with pytest.raises(Unavailable):
        farm(full(Retry_After=asked), Backoff(attempts=2)).workers()
    assert naps[0] <= 10.2


@pytest.mark.parametrize("asked", ["-5", "nan", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
def test_a_wait_that_is_none_is_our_own(naps: list[float], asked: str) -> None:
    with pytest.raises(Unavailable):
        farm(full(Retry_After=asked), Backoff(attempts=2, first_s=0.5)).workers()
    assert 0.5 <= naps[0] <= 1


def test_without_a_first_wait_there_is_none_whatever_the_farm_says(naps: list[float]) -> None:
    with pytest.raises(Unavailable):
        farm(full(Retry_After="3"), Backoff(first_s=0)).workers()
    assert set(naps) == {0.0}


def test_waiting_can_be_switched_off_where_stamina_is(naps: list[float]) -> None:
    with stamina.set_testing(True, attempts=3), pytest.raises(Unavailable):
        farm(full(Retry_After="3"), Backoff(attempts=9)).workers()
    assert naps == [0.0, 0.0]


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (500, FarmError), (507, FarmError)])
def test_what_does_not_pass_is_asked_once(
    naps: list[float], status: int, kind: type[FarmError]
) -> None:
    with pytest.raises(kind):
        farm(full(status)).workers()
    assert naps == []


def test_what_may_not_be_sent_twice_is_sent_once(naps: list[float]) -> None:
    with pytest.raises(Unavailable):
        farm(full()).scrub()
    assert naps == []


def test_a_retry_says_nothing_on_a_terminal(
    naps: list[float], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("stamina"), "propagate", False)
    with pytest.raises(Unavailable):
        farm(full(), Backoff(attempts=2)).workers()
    assert naps
    assert capfd.readouterr() == ("", "")


def losing(backoff: Backoff, got_on: list[bool], attempts: int = 3) -> Iterator[None]:
    """An attempt for each of ``got_on``, all of which are lost."""
    said = iter(got_on)
    for one in backoff.in_a_row(attempts):
        yield None
        with one:
            one.got_on = next(said)
            raise Unavailable


def test_attempts_that_get_on_are_never_too_many(naps: list[float]) -> None:
    tried = losing(Backoff(first_s=1), [True] * 20 + [False])
    for _ in range(20):
        next(tried)
    assert len(naps) == 19
    assert all(1 <= nap <= 2 for nap in naps)  # each is the first of a row


def test_only_failures_in_a_row_are_counted(naps: list[float]) -> None:
    tried = losing(Backoff(), [False, False, True, False, False, False])
    with pytest.raises(Unavailable):
        list(islice(tried, 9))
    assert len(naps) == 5


def test_an_attempt_that_is_abandoned_is_not_tried_again(naps: list[float]) -> None:
    def seen() -> Iterator[int]:
        for one in Backoff().in_a_row(3):
            with one:
                yield 1

    watching = seen()
    next(watching)
    watching.close()
    assert naps == []
