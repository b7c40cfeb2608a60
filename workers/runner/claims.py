"""Claims jobs, and runs units of work that outlast a temporary outage of the database."""

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
from farm.queue import jobs
from farm.queue.jobs import Claim
from workers.runner.app import Context
from workers.runner.waits import LOCKED_S, doubling

log = logging.getLogger(__name__)

_RETRY_S = (0.5, 10.0)  #: between tries while the database is away: the first wait, and the longest
_CLAIM_AGAIN_S = (0.2, 1.0)  #: before the second and third try of a claim
_RACES = 10
_PATIENCE_S = 30.0  #: with jobs that others have locked; the sweep rings again

T = TypeVar("T")


class ForOthers(Exception):
    """The first job in line should be tried by another worker first."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def claim(context: Context, job_id: int) -> Claim | None:
    """Claim the first job in line of the queue that the message rang for.

    Raises:
        ForOthers: another worker should try it first.
        DatabaseUnavailable: for more than a moment, unlike a lock that was briefly taken.
    """
    for wait_s in _CLAIM_AGAIN_S:
        try:
            return _try_to_claim(context, job_id)
        except DatabaseUnavailable:
            context.stopping.wait(wait_s)
    return _try_to_claim(context, job_id)


def _try_to_claim(context: Context, job_id: int) -> Claim | None:
    """Look until a job is claimed or none is in line: a submission that moves one may hold its lock."""
    waits, until = doubling(*LOCKED_S), time.monotonic() + _PATIENCE_S
    while True:
        claim = _look(context, job_id)
        if claim is not None or time.monotonic() > until:
            return claim
        with context.db.read() as session:
            if not jobs.is_in_line(session, job_id, longest_s=context.settings.retry_longest_s):
                return None
        if context.stopping.wait(next(waits)):
            return None


def _look(context: Context, job_id: int) -> Claim | None:
    with context.db.write() as session:
        found = jobs.claim_first(
            session,
            job_id,
            owner=context.worker,
            lease_s=context.settings.lease_ttl_s,
            longest_s=context.settings.retry_longest_s,
        )
        if found is not None and _is_for_others(context, session, found.job_id):
            raise ForOthers(found.job_id)  # which rolls the claim back
        return found


def _is_for_others(context: Context, session: Session, job_id: int) -> bool:
    """Whether a job that failed on this machine is waiting for another worker that is available."""
    until = context.shunned.get(job_id)
    if until is None:
        return False
    if time.monotonic() > until:
        del context.shunned[job_id]
        return False
    return _others_may(context, session, job_id)


def others_may(context: Context, job_id: int) -> bool:
    """Whether another worker that is available reads this job's queue.

    Raises:
        DatabaseUnavailable
    """
    with context.db.read() as session:
        return session.get(Job, job_id) is not None and _others_may(context, session, job_id)


def _others_may(context: Context, session: Session, job_id: int) -> bool:
    queue = session.get_one(Job, job_id).queue
    fleet = Fleet.load(session, ttl_s=context.settings.worker_ttl_s)
    return any(
        queue in worker.queues and fleet.online(worker) and worker.name != context.worker
        for worker in fleet.workers
    )


def pass_on(context: Context, job_id: int) -> None:
    """Ring again for a job that isn't run here; if that fails, the sweep does."""
    try:
        context.doorbell.pass_on(job_id)
    except Unavailable as err:
        log.warning("%s; the sweep rings again for what is queued", err.detail)


def insist(
    context: Context, work: Callable[[Session], T], *, before: Callable[[], None] = lambda: None
) -> T:
    """Do a unit of work, and retry it while the database is away: a restart of the database mustn't
    lose hours of work. If another worker took the job over meanwhile, it keeps it.

    Parameters:
        before: called before each try, outside of the unit of work.

    Raises:
        DatabaseUnavailable: the worker is shutting down.
        LeaseLost
    """
    waits, races = doubling(*_RETRY_S), 0
    while True:
        try:
            before()
            with context.db.write() as session:
                return work(session)
        except IntegrityError:
            races += 1  # with a submission of the same work; the next try finds it there
            if races > _RACES:
                raise
        except DatabaseUnavailable as err:
            wait_s = next(waits)
            log.warning("%s; trying again in %s s", err.detail, wait_s)
            if context.stopping.wait(wait_s):
                raise
