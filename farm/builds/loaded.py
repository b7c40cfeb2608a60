"""A build with its jobs and engines, as stored in the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.job_rows import JobRow, select_job_rows
from farm.database.tables import Build, BuildJob, Job, Model, Version, Wanted
from farm.errors import NotFound
from farm.registry import interfaces, provenance


@dataclass(frozen=True, kw_only=True)
class LoadedBuild:
    build: Build
    model: str
    version: int
    jobs: Sequence[tuple[JobRow, str]]  #: each with its reuse, in the plan's order
    wanted: Sequence[Wanted]
    doubts: Mapping[str, Sequence[str]] = field(default_factory=dict)  #: engine id → why
    held_back: Sequence[str] = ()  #: how its version's inputs differ, if nobody said that they may


def load(session: Session, build_id: str) -> LoadedBuild:
    """Read a build.

    Raises:
        NotFound
    """
    found = session.execute(
        select(Build, Model.name, Version.number)
        .join(Version, Version.id == Build.version_id)
        .join(Model, Model.id == Version.model_id)
        .where(Build.id == build_id)
    ).one_or_none()
    if found is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    jobs = session.execute(
        select_job_rows()
        .add_columns(BuildJob.reuse)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build_id)
        .order_by(BuildJob.position)
    )
    wanted = session.scalars(
        select(Wanted).where(Wanted.build_id == build_id).order_by(Wanted.build_job_id)
    ).all()
    row, model, version = found
    return LoadedBuild(
        build=row,
        model=model,
        version=version,
        jobs=[(JobRow.of(one._mapping), one.reuse) for one in jobs],
        wanted=wanted,
        doubts=provenance.doubts(session, wanted),
        held_back=interfaces.held_back(session, row.version_id),
    )
