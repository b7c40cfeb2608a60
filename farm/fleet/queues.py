"""Queues: how many jobs wait in each, since when, and who takes them."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Job
from farm.fleet.workers import Fleet
from farm.schemas.fleet import QueueView
from farm.specs.states import JobState


def queue_views(session: Session, fleet: Fleet) -> list[QueueView]:
    """Every queue that has jobs or a worker that has been seen, the longest wait first.

    A job waits from when it was made: one whose inputs took long has had its wait too.
    """
    rows = session.execute(
        select(Job.queue, func.count(), func.min(Job.created_at))
        .where(Job.state == JobState.QUEUED)
        .group_by(Job.queue)
    )
    waiting = {queue: (count, oldest) for queue, count, oldest in rows}
    read = {queue for worker in fleet.workers for queue in worker.queues}
    at, found = now(), []
    for queue in waiting.keys() | read:
        count, oldest = waiting.get(queue, (0, None))
        found.append(
            QueueView(
                queue=queue,
                jobs=count,
                oldest_s=0.0 if oldest is None else max((at - oldest).total_seconds(), 0.0),
                workers=fleet.online_queues.get(queue, 0),
                waits_for=fleet.lacks(queue) if count else None,
            )
        )
    return sorted(found, key=lambda one: (-one.oldest_s, one.queue))
