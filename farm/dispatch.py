"""Celery as a doorbell: messages that carry a job's id and attempt, sent after the commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from celery import Celery, uuid
from kombu import Producer
from kombu.exceptions import OperationalError
from sqlalchemy import ColumnElement, Row, and_, or_, select, update

from farm import turns
from farm.db import Database, now
from farm.errors import BrokerUnavailable
from farm.models import Job
from farm.settings import Settings
from farm.states import JobState

log = logging.getLogger(__name__)

TASK = "farm.run"
#: Of Flower's list of tasks; a running task's kwargs are its phase and progress.
COLUMNS = "name,state,args,kwargs,runtime,worker,received,uuid"


def create_celery(settings: Settings) -> Celery:
    """The Celery application that producers, workers and Flower share."""
    app = Celery("farm", broker=settings.broker)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # What Flower needs to show names, arguments and states.
        worker_send_task_events=True,
        task_track_started=True,
        result_extended=True,
        # The database holds the work. A message is acked when it arrives: it's only a bell.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # Without this a message waits behind a running build beside an idle peer.
        worker_disable_prefetch=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": list(range(10)),
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
        },
        task_create_missing_queues=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
    )
    return app


def shown_arguments(job_id: int, attempt: int, key: str) -> str:
    """A task's arguments as Flower shows them."""
    return f"job={job_id} attempt={attempt} key={key.removeprefix('sha256:')[:12]}"


class Doorbell:
    """Sends the messages that tell workers of queued jobs, and notes when."""

    def __init__(self, db: Database, celery: Celery) -> None:
        self._db = db
        self._celery = celery
        self._events = celery.events.Dispatcher(enabled=False)

    def ring(self, job_ids: Iterable[int]) -> None:
        """Announce these jobs, as far as they are queued.

        Raises:
            BrokerUnavailable: the sweep announces them when the broker is back.
        """
        ids = list(job_ids)
        if ids:
            self._ring(Job.id.in_(ids))

    def ring_pending(self, *, again_s: float) -> int:
        """Announce every queued job that never was, or was so long ago that its message may be lost.

        Raises:
            BrokerUnavailable
        """
        late = now() - timedelta(seconds=again_s)
        return self._ring(and_(turns.may_start(), or_(Job.rung_at.is_(None), Job.rung_at < late)))

    def _ring(self, condition: ColumnElement[bool]) -> int:
        with self._db.read() as session:
            queued = session.execute(
                select(Job.id, Job.attempt, Job.queue, Job.priority, Job.title, Job.key)
                .where(Job.state == JobState.QUEUED, condition)
                .order_by(Job.place, Job.id)
                .limit(1000)
            ).all()
        if not queued:
            return 0
        try:
            with self._celery.producer_or_acquire() as producer:
                for job in queued:
                    self._send(job, producer)
        except OperationalError as err:
            raise BrokerUnavailable(f"the broker can't be reached: {err}") from err
        with self._db.write() as session:
            session.execute(
                update(Job)
                .where(Job.id.in_([job.id for job in queued]), Job.state == JobState.QUEUED)
                .values(rung_at=now())
            )
        return len(queued)

    def _send(self, job: Row[*tuple[Any, ...]], producer: Producer) -> None:
        task_id, arguments = uuid(), shown_arguments(job.id, job.attempt, job.key)
        # Celery's own event would call every waiting task by the name that all of them have. Sent
        # first: after the worker's events it would undo what they say.
        sent = {"uuid": task_id, "name": job.title, "args": arguments, "queue": job.queue}
        self._events.publish("task-sent", sent, producer)
        self._celery.send_task(
            TASK,
            args=(job.id, job.attempt),
            task_id=task_id,
            queue=job.queue,
            priority=9 - job.priority,  # of Redis' lists the first is 0
            shadow=job.title,
            argsrepr=arguments,
            producer=producer,
            retry=False,
            ignore_result=True,
        )


def run_flower(host: str = "127.0.0.1", port: int = 5555) -> None:
    """Run Flower, to look at and not to touch: tasks sent from it would bypass the database."""
    import os

    os.environ.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
    create_celery(Settings()).start(
        [
            "flower",
            f"--address={host}",
            f"--port={port}",
            "--read_only=true",
            f"--tasks_columns={COLUMNS}",
            "--inspect_timeout=3000",
        ]
    )
