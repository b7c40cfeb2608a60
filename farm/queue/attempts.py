"""What the database knows of jobs' attempts: when each ran, on which worker, and how it ended.

A job's row holds its newest attempt alone; its events tell of those before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build, BuildJob, Event, Job, Model, Version
from farm.queue import shown
from farm.specs.runtime import Target
from farm.specs.states import ENDED, JobState, Reuse

_OTHERS = 5  #: builds named besides the first


@dataclass(frozen=True, kw_only=True)
class About:
    """What a job is for. Never changes, but for further builds that join it."""

    job_id: int
    key: str
    title: str
    queue: str
    stage: str
    gpu: str | None = None  #: the target's GPU tag
    precision: str | None = None
    model: str | None = None  #: ``digits@3``
    build: str | None = None  #: the build that created the job
    other_builds: Sequence[str] = ()  #: some of those that have joined it


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job."""

    job: About
    number: int
    queued_at: datetime | None = None  #: None if it waited for another job's result to its end
    started_at: datetime | None = None
    worker: str | None = None
    ended_at: datetime | None = None
    #: None while it is queued or runs. FAILED also if it was interrupted.
    end: JobState | None = None
    failure: str | None = None  #: as ``shown.failure``


def ended(session: Session, attempts: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of these attempts (job id, attempt) that have ended."""
    wanted = set(attempts)
    rows = session.execute(
        select(Job.id, Job.attempt, Job.state).where(Job.id.in_({job_id for job_id, _ in wanted}))
    )
    now_at = {job_id: (attempt, state) for job_id, attempt, state in rows}
    return {
        (job_id, attempt)
        for job_id, attempt in wanted
        if job_id in now_at and (now_at[job_id][0] > attempt or now_at[job_id][1] in ENDED)
    }


def newest(session: Session, limit: int) -> list[int]:
    """The ids of the newest jobs, oldest first."""
    return sorted(session.scalars(select(Job.id).order_by(Job.id.desc()).limit(limit)))


def of_jobs(session: Session, job_ids: Collection[int]) -> list[Attempt]:
    """Every attempt at these jobs."""
    jobs = about(session, job_ids)
    happened: dict[int, list[Any]] = {job_id: [] for job_id in jobs}
    changes = session.execute(
        select(Event.job_id, Event.state, Event.data, Event.at)
        .where(Event.job_id.in_(job_ids), Event.kind == "job")
        .order_by(Event.id)
    )
    for change in changes:
        happened[change.job_id].append(change)
    return [one for job_id, job in jobs.items() for one in _told(job, happened[job_id])]


def _told(job: About, changes: Iterable[Any]) -> Iterable[Attempt]:
    """The attempts that a job's changes of state tell of."""
    found: dict[int, Attempt] = {}
    for change in changes:
        number = int(change.data["attempt"])
        before = found.get(number - 1)
        if number not in found and before is not None and before.end is None:
            cause = shown.interruption(change.data.get("cause") or "its worker went silent")
            found[number - 1] = replace(
                before, end=JobState.FAILED, ended_at=change.at, failure=cause
            )
        now = found.get(number) or Attempt(job=job, number=number)
        found[number] = _changed(now, change)
    return found.values()


def _changed(attempt: Attempt, change: Any) -> Attempt:
    if change.state == JobState.QUEUED:
        return replace(attempt, queued_at=change.at)
    if change.state == JobState.RUNNING:
        return replace(attempt, started_at=change.at, worker=change.data.get("worker"))
    if change.state in ENDED and attempt.end is None:
        error = change.data.get("error")
        return replace(
            attempt,
            end=JobState(change.state),
            ended_at=change.at,
            failure=shown.failure(error) if error else None,
        )
    return attempt


def about(session: Session, job_ids: Collection[int]) -> dict[int, About]:
    """What these jobs are for."""
    rows = session.execute(
        select(Job.id, Job.key, Job.title, Job.queue, Job.kind, Job.target, Job.precision)
        .where(Job.id.in_(job_ids))
        .order_by(Job.id)
    ).all()
    builds = _builds(session, job_ids)
    return {
        row.id: About(
            job_id=row.id,
            key=row.key,
            title=row.title,
            queue=row.queue,
            stage=row.kind,
            gpu=Target.parse(row.target).gpu if row.target else None,
            precision=row.precision,
            **builds.get(row.id, {}),
        )
        for row in rows
    }


def _builds(session: Session, job_ids: Collection[int]) -> Mapping[int, dict[str, Any]]:
    rows = session.execute(
        select(BuildJob.job_id, Build.id, Model.name, Version.number)
        .join(Build, Build.id == BuildJob.build_id)
        .join(Version, Version.id == Build.version_id)
        .join(Model, Model.id == Version.model_id)
        # Not those that found it done: of some jobs there are thousands.
        .where(BuildJob.job_id.in_(job_ids), BuildJob.reuse != Reuse.CACHED)
        .order_by(BuildJob.job_id, BuildJob.reuse.desc(), Build.created_at, Build.id)
    )
    found: dict[int, dict[str, Any]] = {}
    for job_id, build, model, number in rows:
        if job_id not in found:
            found[job_id] = {"build": build, "model": f"{model}@{number}", "other_builds": []}
        elif len(found[job_id]["other_builds"]) < _OTHERS:
            found[job_id]["other_builds"].append(build)
    return found
