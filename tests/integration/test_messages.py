"""How the worker reads messages from a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from farm.queue.celery_app import TASK, create_celery
from tests.integration.test_dispatch import site  # noqa: F401 a broker
from workers.runner import messages

QUEUE = "cpu"


@pytest.fixture
def app(site: Any) -> Iterator[Celery]:  # noqa: F811
    made = create_celery(site[1])
    made.amqp.queues.select([QUEUE])
    yield made
    made.close()


def read(app: Celery, connection: Connection) -> Any:
    """The next message, as a worker reads it."""
    found: list[Any] = []
    consumer = app.amqp.TaskConsumer(connection)
    consumer.on_message = found.append
    with consumer:
        while not found:
            connection.drain_events(timeout=30)
    return found[0]


def kept(connection: Connection) -> int:
    """The messages that the broker keeps for those who read them."""
    channel = connection.default_channel
    return int(channel.client.hlen(channel.unacked_key))


def test_a_message_that_is_read_is_gone(app: Celery) -> None:
    messages.take(app)
    app.send_task(TASK, args=(1, 1), queue=QUEUE)
    with app.connection_for_read() as connection:
        message = read(app, connection)
        assert message.headers["task"] == TASK
        assert kept(connection) == 0


def test_without_that_the_broker_keeps_it(app: Celery) -> None:
    app.send_task(TASK, args=(1, 1), queue=QUEUE)
    with app.connection_for_read() as connection:
        message = read(app, connection)
        assert kept(connection) == 1
        message.ack()


def test_a_worker_returns_no_notice_of_it(app: Celery) -> None:
    def ack(*_: object) -> None:
        raise AssertionError("it asks the broker")

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(*_: int) -> None:
        """Never called."""

    messages.take(app)
    app.send_task(TASK, args=(1, 1), queue=QUEUE)
    with app.connection_for_read() as connection:
        message = read(app, connection)
        request = messages.Message(message, on_ack=ack, app=app, task=run)
        request.on_accepted(pid=1, time_accepted=0.0)
        assert request.acknowledged
