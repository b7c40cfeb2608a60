"""Job leases: renewed while a worker runs the job, requeued when one expires."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import IS_RUNNING, Job
from farm.errors import FarmError, LeaseLost, StageFailed
from farm.queue import counted, transitions
from farm.queue.jobs import end_cancelled, fail, held, locked, requeue
from farm.specs.states import JobState, Requeued

#: How long other workers have to claim a job that one couldn't run.
_LEAVE_FOR = timedelta(seconds=5)


def renew(session: Session, job_id: int, attempt: int, *, lease_s: float) -> bool:
    """Extend the lease; return whether the job should be cancelled.

    Raises:
        LeaseLost: another attempt holds the job, or none does.
    """
    until = now() + timedelta(seconds=lease_s)
    cancel = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
        .values(lease_until=until)
        .returning(Job.cancel_requested)
    )
    if cancel is None:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    return bool(cancel)


def release(session: Session, owner: str, attempts: Mapping[int, int]) -> None:
    """Give back the jobs of a worker that is shutting down, without counting an attempt.

    Parameters:
        attempts: of each job it claimed. Another worker with the same name may already be running.
    """
    held = session.scalars(
        transitions.locked_rows(
            select(Job)
            .where(Job.id.in_(attempts), Job.state == JobState.RUNNING, Job.owner == owner)
            .order_by(Job.id)
        )
    ).all()
    for job in held:
        if attempts[job.id] != job.attempt:
            continue
        if job.cancel_requested:
            end_cancelled(session, job.id, job.attempt)
        else:
            job.first_attempt += 1
            requeue(session, job, Requeued.SHUT_DOWN, cause=f"worker {owner} shut down")


class Lease(NamedTuple):
    """A worker's hold on a job; each renewal makes a new lease."""

    job_id: int
    attempt: int
    until: datetime | None


def running(session: Session) -> list[Lease]:
    """The leases of all running jobs."""
    rows = session.execute(select(Job.id, Job.attempt, Job.lease_until).where(IS_RUNNING))
    return [Lease(*row) for row in rows]


def reap(session: Session, lease: Lease, *, max_attempts: int) -> None:
    """Requeue a job whose worker hasn't renewed this lease in time; after ``max_attempts`` it fails."""
    job = locked(session, [lease.job_id])[lease.job_id]
    if job.state != JobState.RUNNING or Lease(job.id, job.attempt, job.lease_until) != lease:
        return  # it was just renewed, or the job ended
    counted.lease_lost(session, job.kind)
    if job.cancel_requested:
        end_cancelled(session, job.id, job.attempt)
    else:
        cause = f"worker {job.owner} let its lease expire"
        _again_or_fail(session, job, Requeued.LEASE_EXPIRED, cause, max_attempts)


def interrupt(
    session: Session,
    job_id: int,
    attempt: int,
    error: FarmError,
    *,
    max_attempts: int,
    wait_s: tuple[float, float],
) -> None:
    """Requeue a job interrupted by an external cause, after a wait; after ``max_attempts`` it fails.

    Parameters:
        wait_s: the first and the longest wait before the next attempt.

    Raises:
        LeaseLost
    """
    job = held(session, job_id, attempt)
    first_s, most_s = wait_s
    wait = timedelta(seconds=min(first_s * 4.0 ** min(attempt - job.first_attempt, 20), most_s))
    if _again_or_fail(session, job, Requeued.INTERRUPTED, error.detail, max_attempts):
        until = now() + wait
        why = f"interrupted: {error.detail}"[:100]
        values = {"not_before": until, "phase": why}
        session.execute(update(Job).where(Job.id == job_id).values(values))


def leave(session: Session, job_id: int, attempt: int, cause: str) -> None:
    """Requeue a job planned for other tools, after a wait, without counting an attempt.

    Meanwhile the daemon replans its builds. If no build needs it any more, it is cancelled.

    Parameters:
        cause: how the tools differ.

    Raises:
        LeaseLost
    """
    job = held(session, job_id, attempt)
    if job.cancel_requested:
        end_cancelled(session, job_id, attempt)
        return
    job.first_attempt += 1
    if requeue(session, job, Requeued.OTHER_TOOLS, cause=cause):
        later = {"not_before": now() + _LEAVE_FOR, "phase": cause[:100], "outdated": cause[:200]}
        session.execute(update(Job).where(Job.id == job.id).values(later))


def _again_or_fail(
    session: Session, job: Job, why: Requeued, cause: str, max_attempts: int
) -> bool:
    if job.attempt - job.first_attempt + 1 < max_attempts:
        return requeue(session, job, why, cause=cause)
    hint = "check the job's log and the worker, then: farm retry"
    attempts = "its only attempt" if max_attempts == 1 else f"each of {max_attempts} attempts"
    error = StageFailed(f"{cause}, in {attempts}", hint=hint)
    fail(session, job.id, job.attempt, error)
    return False
