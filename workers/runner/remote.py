"""What the broker's users may do with this worker: ring for a job, and look. Nothing else.

Whoever can reach the broker could otherwise shut workers down, or let them stop reading a queue, which nobody
would see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.worker.control import Panel

from farm.queue.celery_app import TASK

#: What Flower shows, and the ping by which a container's health is asked for.
LOOKS = frozenset(
    "ping stats active_queues registered scheduled active reserved revoked conf".split()
)


def close(app: Celery) -> None:
    """Keep this process to the farm's one task, and to control commands that only look."""
    for name in set(Panel.data) - LOOKS:
        del Panel.data[name]
    app.finalize()
    # Celery's own would run tasks in other ways: celery.map, celery.chord …
    for name in [name for name in app.tasks if name != TASK]:
        del app.tasks[name]


def unread(consumer: Any, queues: Iterable[str]) -> list[str]:
    """Those of a worker's queues that its consumer doesn't read.

    None of them while it has no connection, since then it is the broker that is away.
    """
    tasks = getattr(consumer, "task_consumer", None)
    if tasks is None:
        return []
    return sorted(queue for queue in queues if not tasks.consuming_from(queue))
