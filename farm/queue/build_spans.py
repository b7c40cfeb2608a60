"""The span of a build, from its submission to its end, by whichever process ends it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, event, func, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Build, BuildJob, Job, Model, Version
from farm.specs.states import BuildState, JobState
from farm.tracing import spans

_BUILD = (
    select(Build.trace, Build.created_at, Model.name, Version.number)
    .join(Version, Version.id == Build.version_id)
    .join(Model, Model.id == Version.model_id)
    .where(Build.id == bindparam("build_id"))
)

_REUSES = (
    select(BuildJob.reuse, func.count())
    .where(BuildJob.build_id == bindparam("build_id"))
    .group_by(BuildJob.reuse)
)

_FIRST_ERROR = (
    select(Job.error)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(BuildJob.build_id == bindparam("build_id"), Job.state == JobState.FAILED)
    .order_by(Job.finished_at, Job.id)
    .limit(1)
)


def ended(session: Session, build_id: str, state: BuildState) -> None:
    """Record the span of a build that has ended, once this unit of work is committed."""
    if not spans.is_on():
        return
    this = {"build_id": build_id}
    build = session.connection().execute(_BUILD, this).one()
    if build.trace is None:
        return
    attributes: dict[str, Any] = {
        "farm.build.id": build_id,
        "farm.build.state": state,
        "farm.model": build.name,
        "farm.version": build.number,
    }
    for reuse, count in session.connection().execute(_REUSES, this).tuples():
        attributes[f"farm.jobs.{reuse}"] = count
    error = None
    if state == BuildState.FAILED:
        first = session.connection().scalar(_FIRST_ERROR, this) or {}
        error = (first.get("code", "unknown"), first.get("detail", ""))
    _after_commit(session, build.trace, build.created_at, now(), attributes, error)


def _after_commit(
    session: Session,
    trace: dict[str, str],
    began: datetime,
    at: datetime,
    attributes: dict[str, Any],
    error: tuple[str, str] | None,
) -> None:
    def committed(_: Session) -> None:
        spans.record(trace, "build", began=began, ended=at, attributes=attributes, error=error)

    event.listen(session, "after_commit", committed, once=True)
