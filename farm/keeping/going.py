"""What a deletion takes from the database, and the taking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session, aliased

from farm.database.base import Base, now
from farm.database.tables import (
    Build,
    BuildJob,
    EngineRow,
    GoalRow,
    Job,
    JobInput,
    Version,
    Yank,
)
from farm.errors import ResultDeleted
from farm.queue import jobs, transitions
from farm.registry.oci import derived
from farm.registry.rows import identity
from farm.specs.roles import Role
from farm.specs.states import BUILD_ENDED, LIVE, JobState
from farm.stages import STAGES, JobKind

#: Kinds of jobs whose outputs are only other jobs' inputs.
INTERMEDIATE = tuple(kind for kind, stage in STAGES.items() if not stage.ends_engine)
#: An output of a build that only later builds use.
_BESIDE = Role.TIMING_CACHE


@dataclass(frozen=True, kw_only=True)
class Going:
    """What a deletion is about, before it is known what others need of it."""

    what: str
    versions: Sequence[int]
    engines: Sequence[EngineRow] = ()
    jobs: Collection[int] = ()
    whole: bool = False  #: whether the versions themselves go
    outputs_only: bool = False  #: whether it is about intermediates


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a deletion has taken."""

    digests: Sequence[str]  #: of all files that any of it named; others may name them too
    engines: Sequence[EngineRow]
    rows: Mapping[str, int] = field(default_factory=dict)


def everything(session: Session, versions: Sequence[int]) -> set[int]:
    """The jobs of versions' builds, and those of no build: of replanned ones, which may have been theirs."""
    theirs = _of_builds(versions)
    of_none = ~select(BuildJob.job_id).where(BuildJob.job_id == Job.id).exists()
    found = select(Job.id).where(Job.state == JobState.SUCCEEDED, or_(Job.id.in_(theirs), of_none))
    return set(session.scalars(found))


def intermediates(session: Session, versions: Sequence[int]) -> set[int]:
    """The jobs of versions' builds with outputs that aren't an engine's."""
    theirs = _of_builds(versions)
    found = select(Job.id).where(Job.state == JobState.SUCCEEDED, Job.id.in_(theirs))
    return set(session.scalars(found.where(Job.kind.in_([*INTERMEDIATE, JobKind.BUILD]))))


def _of_builds(versions: Sequence[int]) -> Any:
    return (
        select(BuildJob.job_id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(Build.version_id.in_(versions))
    )


def take(session: Session, going: Going) -> Taken:
    """Take it out of the database, but for what others need. The versions and engines must be locked."""
    locked = session.execute(
        select(Job.id, Job.kind, Job.outputs)
        .where(Job.id.in_(going.jobs), Job.state == JobState.SUCCEEDED)
        .order_by(Job.id)
        .with_for_update(key_share=True)
    ).all()
    digests = {row.digest for row in going.engines}
    rows = Counter[str](_take_engines(session, going.engines))
    # A query after the locks: it sees what was submitted until then.
    needed = _needed(session, going, {job.id for job in locked})
    for job in locked:
        outputs: dict[str, str] = job.outputs or {}
        if going.outputs_only and job.kind not in INTERMEDIATE:
            if _BESIDE in outputs:
                digests.add(outputs[_BESIDE])
                _drop(session, job.id, outputs, _BESIDE)
                rows["timing caches"] += 1
            continue
        digests |= set(outputs.values())
        if job.id not in needed:
            rows["jobs"] += _forget(session, job.id, going.what)
    if going.whole:
        digests |= _given(session, going.versions)
        rows += Counter(_take_versions(session, going.versions))
    return Taken(digests=sorted(digests), engines=going.engines, rows=dict(rows))


def _needed(session: Session, going: Going, ids: set[int]) -> set[int]:
    """Those of these jobs that something which stays needs."""
    needing = aliased(Job)
    waited_for = (
        select(JobInput.needs_id)
        .join(needing, needing.id == JobInput.job_id)
        .where(JobInput.needs_id == Job.id, needing.state.in_(LIVE))
    )
    published = select(EngineRow.id).where(
        or_(EngineRow.build_job_id == Job.id, EngineRow.measure_job_id == Job.id)
    )
    others: ColumnElement[bool] = Build.state.not_in(BUILD_ENDED)
    if going.whole or going.outputs_only:
        kept = and_(Version.id.not_in(going.versions), Version.deleted_at.is_(None))
        others = or_(others, kept)
    built = (
        select(BuildJob.job_id)
        .join(Build, Build.id == BuildJob.build_id)
        .join(Version, Version.id == Build.version_id)
        .where(BuildJob.job_id == Job.id, others)
    )
    is_needed = or_(waited_for.exists(), published.exists(), built.exists())
    return set(session.scalars(select(Job.id).where(Job.id.in_(ids), is_needed)))


def _forget(session: Session, job_id: int, what: str) -> int:
    """Have a job's outputs be no result any more."""
    error = jobs.describe(ResultDeleted(f"its outputs were deleted with {what}"))
    # finished_at stays: it says how long the job took.
    moved = transitions.move(session, job_id, JobState.SUCCEEDED, JobState.FAILED, error=error)
    assert moved is not None, "it is locked"
    transitions.record(session, moved, JobState.FAILED, error=error)
    return 1


def inferences(session: Session, before: datetime) -> int:
    """Have the results of inferences that ended before this be none any more; return how many.

    They belong to no version, so no deletion takes them.
    """
    ended = select(Job.id).where(
        Job.kind == JobKind.INFER, Job.state == JobState.SUCCEEDED, Job.finished_at < before
    )
    ids = session.scalars(ended.with_for_update(skip_locked=True)).all()
    return sum(_forget(session, job_id, "what was left for long") for job_id in ids)


def _drop(session: Session, job_id: int, outputs: Mapping[str, str], role: str) -> None:
    rest = {one: digest for one, digest in outputs.items() if one != role}
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(outputs=rest)
        .execution_options(synchronize_session=False)
    )


def _take_engines(session: Session, rows: Sequence[EngineRow]) -> dict[str, int]:
    """Delete engines, and what other tables say about them."""
    if not rows:
        return {}
    ids = [row.id for row in rows]
    derived.forget(session, engines=ids)
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if any(key.target_fullname == "engines.id" for key in column.foreign_keys):
                about = column.in_(ids)
                if column.nullable:
                    session.execute(update(table).where(about).values({column: None}))
                else:
                    session.execute(delete(table).where(about))
    for version_id, same in {(row.version_id, identity(row)) for row in rows}:
        yanked = (Yank.version_id == version_id, Yank.same == same)
        session.execute(delete(Yank).where(*yanked).execution_options(synchronize_session=False))
    gone = delete(EngineRow).where(EngineRow.id.in_(ids))
    session.execute(gone.execution_options(synchronize_session=False))
    return {"engines": len(ids)}


def _given(session: Session, versions: Sequence[int]) -> set[str]:
    """The files that were uploaded for versions: their sources, and their builds' data."""
    found = set(session.scalars(select(Version.source_digest).where(Version.id.in_(versions))))
    [paths] = [names.paths for names in Build.blobs.values()]
    requests = select(*(Build.request[path].as_string() for path in paths))
    for row in session.execute(requests.where(Build.version_id.in_(versions))):
        found |= {digest for digest in row if digest}
    return found


def _take_versions(session: Session, versions: Sequence[int]) -> dict[str, int]:
    derived.forget(session, versions=versions)
    for table in (Yank, GoalRow):
        about = delete(table).where(table.version_id.in_(versions))
        session.execute(about.execution_options(synchronize_session=False))
    for row in session.scalars(select(Version).where(Version.id.in_(versions))):
        row.deleted_at, row.variant = now(), f"deleted:{row.number}"
    session.flush()
    return {"versions": len(versions)}
