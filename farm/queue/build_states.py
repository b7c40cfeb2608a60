"""Build states, derived from their jobs' states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from farm.database import noted
from farm.database.base import Instant, now
from farm.database.tables import Build, BuildJob, Job, Wanted
from farm.queue import build_spans, counted
from farm.queue.transitions import locked_rows
from farm.specs.states import BUILD_ENDED, BuildState, JobState, build_state

# Not "state IN (live states)": SQLite would scan all live builds.
_IS_QUEUED = Build.state.not_in(frozenset(BuildState) - {BuildState.QUEUED})
_BUILDS = locked_rows(
    select(Build.id, Build.state, Build.created_at, Build.started_at)
    .where(
        Build.id.in_(
            select(BuildJob.build_id).where(
                BuildJob.job_id.in_(bindparam("job_ids", expanding=True))
            )
        ),
        Build.state.not_in(BUILD_ENDED),
    )
    .order_by(Build.id)
)


_ENGINES_DONE = (
    select(func.count())
    .where(Wanted.build_id == Build.id, Wanted.engine_id.is_not(None))
    .correlate(Build)
    .scalar_subquery()
)


_START = (
    update(Build)
    .where(
        # Locked in order, as by whoever else locks several.
        Build.id.in_(
            locked_rows(
                select(Build.id)
                .where(
                    Build.id.in_(
                        select(BuildJob.build_id).where(BuildJob.job_id == bindparam("job_id"))
                    ),
                    _IS_QUEUED,
                )
                .order_by(Build.id)
            )
        ),
        _IS_QUEUED,
    )
    .values(
        state=BuildState.RUNNING,
        started_at=func.coalesce(Build.started_at, bindparam("at", type_=Instant())),
        finished_at=None,
    )
    .returning(Build.id, Build.created_at, Build.started_at, _ENGINES_DONE)
)


_STATES = (
    select(Job.state)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(BuildJob.build_id == bindparam("build_id"))
    .distinct()
)


_SET_BUILD = (
    update(Build)
    .where(Build.id == bindparam("build_id"))
    .values(
        state=bindparam("new"),
        started_at=bindparam("new_started_at", type_=Instant()),
        finished_at=bindparam("new_finished_at", type_=Instant()),
    )
    .returning(_ENGINES_DONE)
)


def start_builds(session: Session, job_id: int) -> None:
    """Mark the builds that want this job as started."""
    session.flush()
    at = now()
    started = session.connection().execute(_START, {"job_id": job_id, "at": at})
    for build_id, created_at, started_at, done in sorted(started.tuples()):
        if started_at == at:  # a build that is tried again keeps its first start
            counted.build_started(session, created_at, at)
        _record(session, build_id, BuildState.RUNNING, done)


def locked_builds(session: Session, job_ids: Sequence[int]) -> Sequence[Any]:
    """Lock the live builds that want these jobs, until the end of the unit of work."""
    session.flush()
    return session.connection().execute(_BUILDS, {"job_ids": list(job_ids)}).all()


def refresh_builds(session: Session, builds: Iterable[Any]) -> None:
    """Recompute the states of locked builds from their jobs' states."""
    for build in builds:
        states = session.connection().scalars(_STATES, {"build_id": build.id})
        set_build_state(session, build, build_state(map(JobState, states)))


def set_build_state(session: Session, build: Any, state: BuildState) -> None:
    """Move a build to a state and record its times and event; do nothing if it is already there.

    Parameters:
        build: a row with its id, state and times, or a Build, which the caller must refresh.
    """
    if state == build.state:
        return
    counted.build_moved(session, build, state)
    starts = state != BuildState.QUEUED and build.started_at is None
    at = {
        "new_started_at": now() if starts else build.started_at,
        "new_finished_at": now() if state in BUILD_ENDED else None,
    }
    done = session.connection().scalar(_SET_BUILD, {"build_id": build.id, "new": state} | at)
    _record(session, build.id, state, done)
    if state in BUILD_ENDED:
        build_spans.ended(session, build.id, state)


def _record(session: Session, build_id: str, state: BuildState, engines_done: int | None) -> None:
    data = {"engines_done": engines_done}
    noted.note(session, kind="build", build_id=build_id, state=state, data=data)
