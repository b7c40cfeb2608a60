"""What refers to a blob, in words."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.declared import Holds
from farm.database.references import Reference
from farm.database.tables import Build, BuildJob, EngineRow, Job, Model, Plugin, Version


def in_words(session: Session, reference: Reference) -> str:
    """One reference, such as ``source of digits@7``."""
    row = reference.row
    match reference.holds:
        case Holds.SOURCE:
            return f"source of {_version(session, row)}"
        case Holds.DATA:
            version_id = session.scalar(select(Build.version_id).where(Build.id == row))
            return f"submitted with build {row} of {_version(session, version_id)}"
        case Holds.ENGINE:
            version_id = session.scalar(select(EngineRow.version_id).where(EngineRow.id == row))
            return f"engine {row} of {_version(session, version_id)}"
        case Holds.OUTPUT:
            return f"output of {_job(session, row)}"
        case Holds.INPUT:
            return f"input of {_job(session, row)}, which hasn't ended"
        case Holds.TIMING_CACHE:
            return f"timing cache of {row[0]}"
        case Holds.PLUGIN:
            name = session.scalar(select(Plugin.name).where(Plugin.digest == row))
            return f"plugin {name}"
        case Holds.PUSHED:
            return f"pushed to {row[0]}, with the manifest {row[1]}"


def version(session: Session, version_id: int) -> str:
    """``digits@7``."""
    return _version(session, version_id)


def _version(session: Session, version_id: int | None) -> str:
    found = session.execute(
        select(Model.name, Version.number)
        .join(Version, Version.model_id == Model.id)
        .where(Version.id == version_id)
    ).one_or_none()
    # Its row was read a moment ago, and may have gone since.
    return f"{found.name}@{found.number}" if found else "a version that was just deleted"


def _job(session: Session, job_id: int) -> str:
    title = session.scalar(select(Job.title).where(Job.id == job_id))
    build = session.execute(
        select(Build.id, Build.version_id)
        .join(BuildJob, BuildJob.build_id == Build.id)
        .where(BuildJob.job_id == job_id)
        .order_by(Build.id.desc())
        .limit(1)
    ).one_or_none()
    of = f", which {_version(session, build.version_id)} has (build {build.id})" if build else ""
    return f"job {job_id}, {title}{of}"
