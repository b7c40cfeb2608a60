"""Which of a build's jobs take the outputs of which."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import BuildJob, JobInput


def edges(session: Session, build_id: str) -> list[tuple[int, int]]:
    """Pairs of a build's jobs: one, and another that takes an output of it."""
    mine = select(BuildJob.job_id).where(BuildJob.build_id == build_id)
    rows = session.execute(
        select(JobInput.needs_id, JobInput.job_id)
        .where(JobInput.job_id.in_(mine), JobInput.needs_id.in_(mine))
        .order_by(JobInput.job_id, JobInput.needs_id)
        .distinct()
    )
    return list(rows.tuples())
