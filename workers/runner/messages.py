"""How a worker reads messages: one that is read is gone.

A message is only a bell, and the sweep rings again for what is queued without one. Celery would have the
broker keep each until its task runs, a moment later: two more round trips a job, while a message that is lost
waits for the sweep all the same.
"""

from __future__ import annotations

from functools import partial

from celery import Celery
from celery.worker.request import Request
from kombu import Consumer


def take(app: Celery) -> None:
    """Have this process's worker take messages from the broker as it reads them."""
    app.amqp.Consumer = partial(Consumer, no_ack=True)


class Message(Request):  # type: ignore[misc]
    """Celery's request, of a message that the broker keeps no more."""

    def acknowledge(self) -> None:
        self.acknowledged = True
