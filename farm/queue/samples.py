"""What attempts at jobs used over their time, as their workers sampled it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.tables import Job, JobSampleRow
from farm.errors import NotFound
from farm.schemas.samples import AttemptSamples, JobSamples

#: At most as many are kept of an attempt, however long it takes.
MOST = 200


def keep(
    session: Session,
    job_id: int,
    attempt: int,
    *,
    began_at: datetime,
    series: Mapping[str, Sequence[float | None]],
) -> None:
    """Replace the samples of an attempt."""
    columns = {name: list(values) for name, values in series.items()}
    row = {"job_id": job_id, "attempt": attempt, "began_at": began_at, "series": columns}
    upserts.put(session, JobSampleRow, row)


def of_job(session: Session, job_id: int) -> JobSamples:
    """The samples of every attempt at a job.

    Raises:
        NotFound
    """
    rows = session.scalars(
        select(JobSampleRow).where(JobSampleRow.job_id == job_id).order_by(JobSampleRow.attempt)
    ).all()
    if not rows and session.scalar(select(Job.id).where(Job.id == job_id)) is None:
        raise NotFound(f"there is no job {job_id}", hint="`farm status BUILD` lists a build's jobs")
    attempts = [
        AttemptSamples(attempt=row.attempt, began_at=row.began_at, **row.series) for row in rows
    ]
    return JobSamples(job=job_id, attempts=attempts)
