"""Events about attempts on their way from the worker to Flower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.events import EventDispatcher

from farm.queue import shown
from farm.queue.jobs import Claim
from farm.queue.turns import Bell
from workers.runner.shown import Flower


class Producer:
    """Takes what would go to the broker: the kind of each event of a message, and whose it is."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[str, str]]] = []

    def publish(self, events: Any, **_: object) -> None:
        self.sent.append([(event["type"], event["hostname"]) for event in events])


class Loop:
    """Celery's loop, whose timers go off when a test says so."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[..., None], *given: Any) -> None:
        callback(*given)

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def go(self) -> None:
        for timer in [self.timers.pop() for _ in self.timers[:]]:
            timer()


class Consumer:
    """Celery's consumer as far as it sends events."""

    def __init__(self) -> None:
        self.hub = Loop()
        self.producer = Producer()
        self.connect()

    def connect(self) -> None:
        with Celery(broker="memory://") as app:
            made = EventDispatcher(
                app.connection_for_write(),
                app=app,
                hostname="cpu@here",
                enabled=False,
                buffer_group=["task"],
            )
        made.enabled, made.producer = True, self.producer
        self.event_dispatcher = made


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def flower(consumer: Consumer) -> Flower:
    made = Flower()
    made._ready(consumer)
    return made


def claim(job_id: int) -> Claim:
    return Claim(
        job_id=job_id,
        attempt=1,
        key="sha256:abc",
        kind="export",
        title="export digits",
        params={},
        inputs={},
        toolchain={},
        announced=True,
    )


def test_events_of_a_moment_go_in_one_message_and_in_order(
    flower: Flower, consumer: Consumer
) -> None:
    flower.began("a message", claim(1))
    flower.succeeded(claim(1))
    assert consumer.producer.sent == []
    consumer.hub.go()
    kinds = ("task-received", "task-started", "task-succeeded")
    assert consumer.producer.sent == [[(kind, "cpu@here") for kind in kinds]]


def test_the_loop_is_told_once_of_the_events_of_a_moment(
    flower: Flower, consumer: Consumer
) -> None:
    for n in range(3):
        flower.progressed(claim(1), f"exporting {n}")
    assert len(consumer.hub.timers) == 1


def test_events_after_a_message_go_in_the_next(flower: Flower, consumer: Consumer) -> None:
    for n in range(3):
        flower.progressed(claim(1), f"exporting {n}")
        consumer.hub.go()
    assert len(consumer.producer.sent) == 3


def test_events_are_sent_over_a_new_connection_too(flower: Flower, consumer: Consumer) -> None:
    flower.progressed(claim(1), "exporting")
    consumer.hub.timers.clear()  # with the loop of the connection that broke
    consumer.connect()
    flower._goes_s = 0.0  # that moment is over
    flower.progressed(claim(1), "exporting still")
    consumer.hub.go()
    assert consumer.producer.sent == [[("task-progress", "cpu@here")]]


def test_the_event_of_a_message_names_the_doorbell(flower: Flower, consumer: Consumer) -> None:
    flower.rung([Bell(id=7, attempt=2, queue="cpu", priority=5, title="cast", key="sha256:abc")])
    consumer.hub.go()
    assert consumer.producer.sent == [[("task-sent", shown.DOORBELL)]]
