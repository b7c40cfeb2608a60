"""How long a live build's jobs are expected to take, and how much longer the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from farm.builds.history import History, Sought
from farm.builds.loaded import LoadedBuild
from farm.builds.outlook import Coming, Who, outlook
from farm.database.base import now
from farm.database.job_rows import JobRow
from farm.database.tables import JobInput
from farm.fleet.workers import Fleet
from farm.planning.forecast import Range
from farm.schemas.builds import BuildView
from farm.specs.states import BUILD_ENDED, ENDED, JobState

_MOST_AHEAD = 100
_EDGES = select(JobInput.job_id, JobInput.needs_id).where(
    JobInput.job_id.in_(bindparam("ids", expanding=True))
)


def expect(
    session: Session,
    view: BuildView,
    rows: LoadedBuild,
    fleet: Fleet,
    history: History,
) -> None:
    """Add to a live build's view what is expected of it, as far as jobs like its own have run.

    What is left isn't told while many jobs come first: builds are asked for often.
    """
    if view.state in BUILD_ENDED:
        return
    live = [job for job, _ in rows.jobs if job.state not in ENDED]
    took = {job.id: _took(session, job, history) for job in live}
    for job in view.jobs:
        known = took.get(job.id)
        job.expected_s = known.expected if known else None
    in_line = [job for job in live if job.state != JobState.RUNNING]
    places: dict[str, int] = {}
    for one in in_line:
        places[one.queue] = min(one.place, places.get(one.queue, one.place))
    found = outlook(
        session,
        fleet,
        history,
        _coming(session, live, took),
        Who(
            client=rows.build.client,
            priority=rows.build.priority,
            own=[job.id for job in live],
            places=places,
            first=min((job.id for job in in_line), default=0),
        ),
        most_ahead=_MOST_AHEAD,
    )
    if found.took is not None and not found.is_least:
        view.remaining_s = found.took.expected


def _took(session: Session, job: JobRow, history: History) -> Range | None:
    if job.source_bytes is None:
        return None
    sought = Sought(job.kind, job.runtime, job.precision, job.target, job.source_bytes)
    found = history.forecast(session, sought)
    return found.took_s if found else None


def _coming(
    session: Session, live: Sequence[JobRow], took: Mapping[int, Range | None]
) -> list[Coming]:
    keys = {job.id: job.key for job in live}
    after: dict[int, list[str]] = {job.id: [] for job in live}
    for job_id, needs_id in session.connection().execute(_EDGES, {"ids": list(keys)}):
        if needs_id in keys:
            after[job_id].append(keys[needs_id])
    at = now()
    return [
        Coming(
            key=job.key,
            queue=job.queue,
            took=took[job.id],
            after=after[job.id],
            running_for_s=(at - job.started_at).total_seconds()
            if job.state == JobState.RUNNING and job.started_at
            else None,
        )
        for job in live
    ]
