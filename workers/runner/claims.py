"""Claims of jobs, and units of work that outlast a database that is away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.database.tables import Job
from farm.errors import DatabaseUnavailable, Unavailable
from farm.fleet.workers import Fleet
from farm.queue import jobs, turns
from farm.queue.jobs import Claim
from workers.runner.app import Context

log = logging.getLogger(__name__)

_RETRY_S = (0.5, 10.0)  #: between tries while the database is away: at first, and at most
_CLAIM_AGAIN_S = (0.2, 1.0)  #: before the second and the third try of a claim
_RACES = 10

T = TypeVar("T")


class ForOthers(Exception):
    """The first in line is a job that another worker shall try first."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def claim(context: Context, job_id: int) -> Claim | None:
    """Claim the first in line of the queue that the message rang for.

    Raises:
        ForOthers: another worker shall try it first.
        DatabaseUnavailable: not only for a moment, as when a lock wasn't to be had.
    """
    for wait_s in _CLAIM_AGAIN_S:
        try:
            return _try_to_claim(context, job_id)
        except DatabaseUnavailable:
            context.stopping.wait(wait_s)
    return _try_to_claim(context, job_id)


def _try_to_claim(context: Context, job_id: int) -> Claim | None:
    with context.db.write() as session:
        first = turns.first_in_line(session, job_id, longest_s=context.settings.retry_longest_s)
        if first is None:
            return None
        if _is_for_others(context, session, first[0]):
            raise ForOthers(first[0])
        return jobs.claim(
            session, *first, owner=context.worker, lease_s=context.settings.lease_ttl_s
        )


def _is_for_others(context: Context, session: Session, job_id: int) -> bool:
    """Whether a job that this machine has failed waits for another worker that is there."""
    until = context.shunned.get(job_id)
    if until is None:
        return False
    if time.monotonic() > until:
        del context.shunned[job_id]
        return False
    queue = session.get_one(Job, job_id).queue
    fleet = Fleet.load(session, ttl_s=context.settings.worker_ttl_s)
    return any(
        queue in worker.queues and fleet.online(worker) and worker.name != context.worker
        for worker in fleet.workers
    )


def pass_on(context: Context, job_id: int) -> None:
    """Ring again for a job that isn't worked on here; where that fails, the sweep does."""
    try:
        context.doorbell.pass_on(job_id)
    except Unavailable as err:
        log.warning("%s; the sweep rings again for what is queued", err.detail)


def insist(context: Context, work: Callable[[Session], T]) -> T:
    """Do a unit of work, and while the database is away try it again: what took hours to make isn't
    lost to a restart of the database. Whoever took the job over meanwhile has it.

    Raises:
        DatabaseUnavailable: the worker shuts down.
        LeaseLost
    """
    wait_s, longest_s = _RETRY_S
    races = 0
    while True:
        try:
            with context.db.write() as session:
                return work(session)
        except IntegrityError:
            races += 1  # with a submission of the same work; the next look finds it there
            if races > _RACES:
                raise
        except DatabaseUnavailable as err:
            log.warning("%s; trying again in %s s", err.detail, wait_s)
            if context.stopping.wait(wait_s):
                raise
            wait_s = min(2 * wait_s, longest_s)
