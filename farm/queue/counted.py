"""What monitoring counts of jobs, as they move."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from farm.database import gpu_times, tallies
from farm.database.base import now
from farm.database.tables import Event
from farm.errors import is_code
from farm.specs import monitoring, queues
from farm.specs.states import BUILD_ENDED, ENDED, BuildState, JobState, Requeued, Reuse
from farm.trust.callers import KEY


def moved(session: Session, job: Any, old: JobState) -> None:
    """Count a move: the start of an attempt, or the job's end.

    Parameters:
        job: its columns after the move.
    """
    new = JobState(job.state)
    if new is JobState.RUNNING:
        tallies.count(session, monitoring.JOB_ATTEMPTS, job.kind)
        if job.queued_at is not None:
            waited_s = (job.started_at - job.queued_at).total_seconds()
            tallies.observe(session, monitoring.JOB_QUEUE_WAIT, waited_s, job.queue)
    elif new in ENDED and old not in ENDED:  # not a result that was deleted or damaged later
        tallies.count(session, monitoring.JOBS_ENDED, job.kind, new, _code(job.error))
        if old is JobState.RUNNING:
            ran_s = (job.finished_at - job.started_at).total_seconds()
            tallies.observe(session, monitoring.JOB_DURATION, ran_s, job.kind, new)
            if queues.takes_gpu(job.queue) and job.client.startswith(KEY):
                gpu_times.add(session, job.client, job.finished_at, ran_s)


def requeued(session: Session, kind: str, why: Requeued) -> None:
    tallies.count(session, monitoring.JOBS_REQUEUED, kind, why)


def lease_lost(session: Session, kind: str) -> None:
    tallies.count(session, monitoring.LEASES_LOST, kind)


def submitted(session: Session) -> None:
    tallies.count(session, monitoring.BUILDS_SUBMITTED)


def build_started(session: Session, created_at: datetime, at: datetime) -> None:
    """Count a build's first start."""
    tallies.observe(session, monitoring.BUILD_START_DELAY, (at - created_at).total_seconds())


def build_moved(session: Session, build: Any, new: BuildState) -> None:
    """Count a build's start or end.

    Parameters:
        build: its columns before the move, without its event.
    """
    if new is BuildState.RUNNING and build.started_at is None:
        build_started(session, build.created_at, now())
    if new in BUILD_ENDED:
        age_s = (now() - build.created_at).total_seconds()
        tallies.count(session, monitoring.BUILDS_ENDED, new)
        if not session.connection().scalar(_ENDED_BEFORE, {"build_id": build.id}):
            tallies.observe(session, monitoring.BUILD_DURATION, age_s, new)


#: A build that is retried ends again, maybe days later.
_ENDED_BEFORE = (
    select(Event.id)
    .where(
        Event.build_id == bindparam("build_id"),
        Event.kind == "build",
        Event.state.in_(BUILD_ENDED),
    )
    .limit(1)
)


def wanted(session: Session, jobs: Iterable[tuple[str, Reuse]]) -> None:
    """Count jobs by kind, and by how somebody came by them."""
    for kind, reuse in jobs:
        tallies.count(session, monitoring.JOBS_WANTED, kind, reuse)


def _code(error: dict[str, Any] | None) -> str:
    """An error's code, if the farm has it: no text of a job becomes a label."""
    if error is None:
        return ""
    code = str(error.get("code"))
    return code if is_code(code) else "other"
