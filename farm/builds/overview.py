"""What the farm does now: builds that run or wait, and what ended lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.builds import views
from farm.database.job_rows import JobRow, select_job_rows
from farm.database.tables import IS_RUNNING, Build, BuildJob, Job
from farm.fleet.workers import Fleet
from farm.schemas.builds import BuildSummary
from farm.schemas.fleet import RunningJob
from farm.specs.states import BUILD_ENDED, BuildState, JobState
from farm.stages import JobKind


@dataclass(frozen=True, kw_only=True)
class Work:
    """A build that hasn't ended.

    Parameters:
        waits_for: which workers its queued jobs wait for, where none is online.
    """

    build: BuildSummary
    running: Sequence[JobRow]
    queued: int
    waits_for: Sequence[str]

    @property
    def rank(self) -> int:
        """What runs comes first, then what waits for a worker that isn't there, then the rest."""
        return 0 if self.running else 1 if self.waits_for else 2

    @property
    def progress(self) -> float:
        """The share of its jobs that is done, 0 to 1; a running job counts by its phase's progress."""
        done = self.build.jobs_done + sum(job.progress or 0.0 for job in self.running)
        return min(done / self.build.jobs_total, 1.0) if self.build.jobs_total else 0.0


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The farm at one moment.

    Parameters:
        live: how many builds run or wait.
        work: of these the ones with jobs that run, and the newest others; by their rank.
        has_builds: whether there has ever been one.
    """

    work: Sequence[Work]
    live: int
    failed: Sequence[BuildSummary]
    ended: Sequence[BuildSummary]
    has_builds: bool


def overview(session: Session, fleet: Fleet, *, most_live: int, most_ended: int) -> Overview:
    """Read the newest builds that run or wait, that failed, and that ended otherwise."""
    live = _live(session, most_live)
    jobs = _unfinished(session, [one.id for one in live])
    failed = views.builds(session, state=BuildState.FAILED, limit=most_ended)
    ended = views.builds(session, state=BuildState.SUCCEEDED, limit=most_ended)
    unended = select(func.count()).select_from(Build).where(Build.state.not_in(BUILD_ENDED))
    return Overview(
        work=sorted(
            (_work(one, jobs.get(one.id, ()), fleet) for one in live), key=lambda one: one.rank
        ),
        live=session.scalar(unended) or 0,
        failed=failed,
        ended=ended,
        has_builds=bool(live or failed or ended)
        or session.scalar(select(Build.id).limit(1)) is not None,
    )


def _live(session: Session, limit: int) -> list[BuildSummary]:
    """Builds that run or wait: those with jobs that run before others, each newest first."""
    runs = session.scalars(
        select(Build)
        .where(
            Build.state.not_in(BUILD_ENDED),
            Build.id.in_(
                select(BuildJob.build_id).join(Job, Job.id == BuildJob.job_id).where(IS_RUNNING)
            ),
        )
        .order_by(Build.id.desc())
        .limit(limit)
    ).all()
    found = views.summaries(session, runs)
    known = {one.id for one in found}
    others = views.builds(session, live=True, limit=limit)
    return [*found, *(one for one in others if one.id not in known)][:limit]


def running(session: Session, *, limit: int) -> list[RunningJob]:
    """The jobs that run now, the longest running first."""
    rows = session.execute(
        select_job_rows()
        .where(Job.state == JobState.RUNNING)
        .order_by(Job.started_at, Job.id)
        .limit(limit)
    )
    jobs = [JobRow.of(row._mapping) for row in rows]
    builds: dict[int, list[str]] = {}
    for job_id, build_id in session.execute(
        select(BuildJob.job_id, BuildJob.build_id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(BuildJob.job_id.in_([job.id for job in jobs]), Build.state.not_in(BUILD_ENDED))
        .order_by(BuildJob.build_id)
    ):
        builds.setdefault(job_id, []).append(build_id)
    return [
        RunningJob(
            id=job.id,
            title=job.title,
            kind=JobKind(job.kind),
            worker=job.owner,
            attempt=job.attempt,
            phase=job.phase,
            progress=job.progress,
            started_at=job.started_at,
            builds=builds.get(job.id, []),
        )
        for job in jobs
    ]


def _work(build: BuildSummary, jobs: Sequence[JobRow], fleet: Fleet) -> Work:
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    reasons = {fleet.waits_for(job): None for job in queued}
    return Work(
        build=build,
        running=[job for job in jobs if job.state == JobState.RUNNING],
        queued=len(queued),
        waits_for=[reason for reason in reasons if reason is not None],
    )


def _unfinished(session: Session, build_ids: Sequence[str]) -> dict[str, list[JobRow]]:
    found: dict[str, list[JobRow]] = {}
    rows = session.execute(
        select_job_rows()
        .add_columns(BuildJob.build_id)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id.in_(build_ids), Job.state.in_((JobState.RUNNING, JobState.QUEUED)))
        .order_by(BuildJob.position)
    )
    for row in rows:
        found.setdefault(row.build_id, []).append(JobRow.of(row._mapping))
    return found
