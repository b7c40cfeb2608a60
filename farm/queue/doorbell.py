"""Celery as a doorbell: messages with a job's id and attempt, sent after the commit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from celery import Celery, uuid
from kombu import Connection, Producer
from kombu.exceptions import OperationalError
from sqlalchemy import func, or_, select, update

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import IS_QUEUED, Job
from farm.errors import BrokerUnavailable
from farm.queue import shown, turns
from farm.queue.celery_app import TASK
from farm.queue.turns import Bell

log = logging.getLogger(__name__)


_BELL = tuple(getattr(Job, name) for name in Bell._fields)


class Doorbell:
    """Sends the messages that announce queued jobs to workers.

    A job's ``rung_at`` is set before its message is sent, in the transaction that makes it ready. If a
    crash in between loses the message, the sweep resends it later.
    """

    def __init__(
        self,
        db: Database,
        celery: Celery,
        *,
        tell: Callable[[Sequence[Bell]], None] | None = None,
    ) -> None:
        """
        Parameters:
            tell: sends the events about sent messages, which the doorbell does by itself otherwise.
        """
        self._db = db
        self._tell = tell
        self._celery = celery
        self._events = celery.events.Dispatcher(hostname=shown.DOORBELL, enabled=False)
        self._lost = (OperationalError, *celery.connection_for_write().connection_errors)

    def ring(self, bells: Sequence[Bell]) -> None:
        """Announce these jobs.

        Raises:
            BrokerUnavailable: the sweep announces them once the broker is back.
        """
        try:
            self._publish(bells)
        except BrokerUnavailable:
            self._note(bells, None)
            raise

    def pass_on(self, job_id: int) -> None:
        """Resend a job's message, after it made a worker claim a job without a message.

        Otherwise announced jobs would outnumber messages.

        Raises:
            BrokerUnavailable
        """
        with self._db.read() as session:
            job = session.execute(select(*_BELL).where(Job.id == job_id)).one()
        self._publish([Bell.of(job)])

    def ring_pending(self, *, again_s: float, longest_wait_s: float) -> None:
        """Announce queued jobs that never were announced, or so long ago that the message may be lost.

        A message makes a worker claim the first job in line, so one message per queued job is enough, and
        messages don't pile up while no worker consumes the queue.

        Raises:
            BrokerUnavailable
        """
        again = timedelta(seconds=again_s)
        due = turns.due(longest_wait_s)
        not_lately = or_(
            Job.rung_at.is_(None),
            Job.rung_at < now() - again,
            Job.rung_at > now() + again,  # announced before the clock was set back
        )
        pending = (
            select(*_BELL)
            .where(IS_QUEUED, turns.may_start(), not_lately)
            .order_by(Job.place, Job.id)
            .limit(1000)
        )
        with self._db.read() as session:
            bells = [Bell.of(job) for job in session.execute(pending, due)]
        if not bells:
            return
        self._note(bells, now())
        try:
            self._publish(self._without_message(bells, due))
        except BrokerUnavailable:
            self._note(bells, None)
            raise

    def _without_message(self, bells: Sequence[Bell], due: Mapping[str, datetime]) -> list[Bell]:
        """The first of these in each queue, as many as the queue lacks messages."""
        queued = (
            select(Job.queue, func.count())
            .where(IS_QUEUED, turns.may_start(), Job.queue.in_({bell.queue for bell in bells}))
            .group_by(Job.queue)
        )
        with self._db.read() as session:
            missing = Counter(dict(session.execute(queued, due).tuples().all()))
        with self._reaching(), self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0)
            missing -= Counter({queue: _messages(connection, queue) for queue in missing})
        by_queue = {queue: [b for b in bells if b.queue == queue] for queue in missing}
        return [bell for queue, count in missing.items() for bell in by_queue[queue][:count]]

    def _note(self, bells: Sequence[Bell], at: datetime | None) -> None:
        ids = [bell.id for bell in bells]
        with self._db.write() as session:
            session.execute(update(Job).where(Job.id.in_(ids), IS_QUEUED).values(rung_at=at))

    def _publish(self, bells: Sequence[Bell]) -> None:
        with self._reaching(), self._celery.producer_or_acquire() as producer:
            for bell in bells:
                self._send(bell, producer)
            # Celery's own events would tell of the messages. Sent after those, which workers wait for: a
            # receiver that has heard of an attempt's start keeps its state.
            if self._tell is not None:
                self._tell(bells)
                return
            for bell in bells:
                self._events.publish("task-sent", about(bell), producer)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except self._lost as err:
            raise BrokerUnavailable(f"the broker can't be reached: {err}") from err

    def _send(self, bell: Bell, producer: Producer) -> None:
        self._celery.send_task(
            TASK,
            args=(bell.id, bell.attempt),
            task_id=uuid(),
            queue=bell.queue,
            priority=9 - bell.priority,  # in Redis, 0 is the highest priority
            shadow=bell.title,
            argsrepr=shown.arguments(bell.id, bell.attempt, bell.key),
            # For those who watch the broker: a worker takes it from the job that it claims.
            headers=dict(bell.trace or {}),
            producer=producer,
            retry=False,
            ignore_result=True,
        )


def about(bell: Bell) -> dict[str, Any]:
    """What the event about a sent message carries."""
    attempt = shown.attempt_fields(bell.id, bell.attempt, bell.key)
    return attempt | {"name": bell.title, "routing_key": bell.queue}


def _messages(connection: Connection, queue: str) -> int:
    """The number of messages waiting in a queue."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0  # the queue doesn't exist yet
