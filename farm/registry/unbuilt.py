"""Engines that builds of a version want and that aren't there: not yet, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from farm.database.tables import Build, Job, Wanted
from farm.specs.precision import Precision
from farm.specs.runtime import Target
from farm.specs.states import JobState

_BUILT, _MEASURED = aliased(Job), aliased(Job)


@dataclass(frozen=True, kw_only=True)
class Unbuilt:
    """An engine that isn't there, and the job that it takes."""

    build: str
    target: Target
    precision: Precision
    job: int
    state: JobState
    queue: str
    error: dict[str, Any] | None  #: as ``farm.schemas.problems.Failure``


def unbuilt(session: Session, version_id: int) -> Iterator[Unbuilt]:
    """What the newest build that wanted it hasn't got, by target and precision."""
    newest = (
        select(Wanted.target, Wanted.precision, func.max(Wanted.build_id).label("build_id"))
        .join(Build, Build.id == Wanted.build_id)
        .where(Build.version_id == version_id)
        .group_by(Wanted.target, Wanted.precision)
        .subquery()
    )
    rows = session.execute(
        select(
            Wanted.build_id,
            Wanted.target,
            Wanted.precision,
            *(_BUILT.id, _BUILT.state, _BUILT.queue, _BUILT.error),
            *(_MEASURED.id, _MEASURED.state, _MEASURED.queue, _MEASURED.error),
        )
        .join(
            newest,
            (newest.c.build_id == Wanted.build_id)
            & (newest.c.target == Wanted.target)
            & (newest.c.precision == Wanted.precision),
        )
        .join(_BUILT, _BUILT.id == Wanted.build_job_id)
        .join(_MEASURED, _MEASURED.id == Wanted.measure_job_id)
        .where(Wanted.engine_id.is_(None))
        .order_by(Wanted.target, Wanted.precision)
    )
    for build, target, precision, *jobs in rows:
        built, measured = jobs[:4], jobs[4:]
        job, state, queue, error = measured if built[1] == JobState.SUCCEEDED else built
        yield Unbuilt(
            build=build,
            target=Target.parse(target),
            precision=Precision(precision),
            job=job,
            state=JobState(state),
            queue=queue,
            error=error,
        )
