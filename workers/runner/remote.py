"""Limits what the broker's users may do with this worker: announce a job and inspect it, nothing else.

Otherwise anyone who can reach the broker could shut workers down, or make them stop reading a queue
unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.worker.control import Panel

from farm.queue.celery_app import TASK

#: The commands that Flower uses, and the ping of a container's health check.
LOOKS = frozenset(
    "ping stats active_queues registered scheduled active reserved revoked conf".split()
)


def close(app: Celery) -> None:
    """Restrict this process to the farm's one task and to read-only control commands."""
    for name in set(Panel.data) - LOOKS:
        del Panel.data[name]
    app.finalize()
    # Celery's built-in tasks (celery.map, celery.chord …) would run tasks in other ways.
    for name in [name for name in app.tasks if name != TASK]:
        del app.tasks[name]


def read(consumer: Any, queues: Iterable[str]) -> None:
    """Have a worker's consumer read more queues, from its own thread."""
    for queue in queues:
        consumer.call_soon(consumer.add_task_queue, queue)


def unread(consumer: Any, queues: Iterable[str]) -> list[str]:
    """The worker's queues that its consumer doesn't read.

    Empty while it has no connection: then the broker is down.
    """
    tasks = getattr(consumer, "task_consumer", None)
    if tasks is None:
        return []
    return sorted(queue for queue in queues if not tasks.consuming_from(queue))
