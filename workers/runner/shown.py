"""Tells Flower, and whatever else listens to Celery's events, of the attempts at jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from celery import signals
from celery.events import Event

from farm.errors import FarmError
from farm.queue import doorbell, shown
from farm.queue.jobs import Claim, describe
from farm.queue.turns import Bell
from workers.runner import messages, remote

#: How long events wait for others, to go in one message. Each carries its own time.
_GATHER_S = 0.2


class Flower:
    """Sends events about attempts, in order with those of Celery's consumer.

    Sent over a separate connection, an event could arrive first and be overwritten by a later one. What is
    lost with the broker, or because the worker is killed, Flower learns from the database.
    """

    def __init__(self) -> None:
        self._consumer: Any = None
        self._claims: dict[str, Claim] = {}  #: of messages being worked on, by their ids
        self._began_s: dict[int, float] = {}
        self._goes_s = 0.0  #: when what has been gathered is sent
        signals.worker_ready.connect(self._ready, weak=False)

    def _ready(self, sender: Any, **_: object) -> None:
        self._consumer = sender

    def unread(self, queues: Iterable[str]) -> list[str]:
        """The worker's queues that it should read and doesn't."""
        return remote.unread(self._consumer, queues)

    def read(self, queues: Iterable[str]) -> None:
        """Have the worker read more queues."""
        remote.read(self._consumer, queues)

    def rung(self, bells: Sequence[Bell]) -> None:
        """This worker has sent messages."""
        for bell in bells:
            self._tell("task-sent", Event=_of_doorbell, **doorbell.about(bell))

    def began(self, message_id: str, claim: Claim) -> None:
        """A message has made this worker claim a job, which may be another than the message's."""
        self._claims[message_id] = claim
        self._began_s[claim.job_id] = time.monotonic()
        self._send("received", claim, name=claim.title)
        self._send("started", claim)

    def left(self, message_id: str) -> None:
        """The work on a message is over."""
        claim = self._claims.pop(message_id)
        self._began_s.pop(claim.job_id, None)

    def progressed(self, claim: Claim, said: str) -> None:
        # Flower shows a task's keyword arguments in its list, and has nothing else for this.
        self._send("progress", claim, kwargs=said)

    def succeeded(self, claim: Claim) -> None:
        runtime_s = time.monotonic() - self._began_s[claim.job_id]
        self._send("succeeded", claim, result="succeeded", runtime=runtime_s)

    def cancelled(self, claim: Claim) -> None:
        self._send("revoked", claim, terminated=True, signum=None, expired=False)

    def failed(self, claim: Claim, error: FarmError) -> None:
        self._send("failed", claim, exception=shown.failure(describe(error)), traceback=None)

    def interrupted(self, claim: Claim, cause: str) -> None:
        """The attempt has ended without a result; there may be another."""
        self._send("failed", claim, exception=shown.interruption(cause), traceback=None)

    def _send(self, subject: str, claim: Claim, **fields: Any) -> None:
        about = shown.attempt_fields(claim.job_id, claim.attempt, claim.key)
        self._tell(f"task-{subject}", **about, **fields)

    def _tell(self, kind: str, **fields: Any) -> None:
        # The consumer creates a new dispatcher when it reconnects.
        events = getattr(self._consumer, "event_dispatcher", None)
        if events is not None:
            events.on_send_buffered = self._gather
            events.send(kind, **fields)

    def _gather(self) -> None:
        """Have the consumer's loop send the events a moment later, rather than turn for each."""
        loop, at = self._consumer.hub, time.monotonic()
        if loop is not None and at >= self._goes_s:
            self._goes_s = at + _GATHER_S
            loop.call_soon(loop.call_later, _GATHER_S, self._flush)

    def _flush(self) -> None:
        self._goes_s = 0.0
        events = self._consumer.event_dispatcher
        if events is not None:
            events.flush()

    def request_class(self) -> type[Any]:
        """Celery's request, which tells what the worker is doing by the job that its message led to."""
        claims = self._claims

        class Message(messages.Message):
            def info(self, safe: bool = False) -> dict[str, Any]:
                told: dict[str, Any] = super().info(safe)
                claim = claims.get(told["id"])
                if claim is None:
                    return told
                return told | {
                    "id": shown.task_id(claim.job_id, claim.attempt),
                    "name": claim.title,
                    "args": shown.arguments(claim.job_id, claim.attempt, claim.key),
                }

        return Message


def _of_doorbell(kind: str, **fields: Any) -> Any:
    return Event(kind, **fields | {"hostname": shown.DOORBELL})
