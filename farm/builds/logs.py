"""What a build's jobs printed."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build, BuildJob, Job, JobLog
from farm.database.tables import Event as EventRow
from farm.errors import NotFound


def log(session: Session, build_id: str, job_id: int | None) -> str:
    """What a build's jobs printed, each under its title; a single job's without one.

    Raises:
        NotFound
    """
    if session.get(Build, build_id) is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    jobs = (
        select(Job.id, Job.title)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build_id)
        .order_by(BuildJob.position)
    )
    titles = dict(session.execute(jobs).tuples().all())
    if job_id is not None:
        if job_id not in titles:
            raise NotFound(f"build {build_id} has no job {job_id}")
        return _job_log(session, job_id)
    parts = [(title, _job_log(session, one)) for one, title in titles.items()]
    return "".join(f"=== {title}\n{text}" for title, text in parts if text)


def tail(session: Session, job_id: int, most: int) -> tuple[str, bool]:
    """The last ``most`` characters that a job printed, in whole lines; whether that is all of it."""
    pieces = session.scalars(
        select(JobLog.text)
        .join(EventRow, EventRow.id == JobLog.event_id)
        .where(EventRow.job_id == job_id)
        .order_by(EventRow.id.desc())
        .execution_options(yield_per=20)
    )
    found: list[str] = []
    size = 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > most:
            text = "".join(reversed(found))[-most:]
            pieces.close()
            return text.partition("\n")[2] or text, False
    return "".join(reversed(found)), True


def _job_log(session: Session, job_id: int) -> str:
    return "".join(
        session.scalars(
            select(JobLog.text)
            .join(EventRow, EventRow.id == JobLog.event_id)
            .where(EventRow.job_id == job_id)
            .order_by(EventRow.id)
        )
    )
