"""Cancelling builds, which are locked with their jobs meanwhile."""

from __future__ import annotations

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from farm.database.tables import (
    Build,
    BuildJob,
    Job,
)
from farm.errors import NotFound
from farm.queue import build_states, jobs
from farm.specs.states import BUILD_ENDED, BuildState

_JOBS_OF_BUILD = (
    select(Job.id)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(BuildJob.build_id == bindparam("build_id"))
    .order_by(Job.id)
    .with_for_update(of=Job, key_share=True)
)


def cancel_build(session: Session, build_id: str) -> bool:
    """Cancel a build, and those of its jobs that no other build needs. Does nothing if it has ended.

    Returns:
        Whether there was anything to cancel.

    Raises:
        NotFound
    """
    build = locked(session, build_id)
    if build.state in BUILD_ENDED:
        return False
    build_states.set_build_state(session, build, BuildState.CANCELLED)
    wanted = session.scalars(select(BuildJob.job_id).where(BuildJob.build_id == build.id))
    jobs.cancel(session, wanted.all())
    return True


def locked(session: Session, build_id: str) -> Build:
    """A build, locked with its jobs until the end of the unit of work.

    Raises:
        NotFound
    """
    # Jobs before builds, like the workers: the opposite order would deadlock.
    session.execute(_JOBS_OF_BUILD, {"build_id": build_id})
    build = session.scalar(select(Build).where(Build.id == build_id).with_for_update())
    if build is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    return build
