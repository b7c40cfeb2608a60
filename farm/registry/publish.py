"""Publishes engines in the registry once they are built and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, and_, bindparam, insert, or_, select, update
from sqlalchemy.orm import Session, aliased

from farm.database.base import Base
from farm.database.ids import new_id
from farm.database.tables import IS_KEPT, Build, EngineRow, Job, Version, Wanted
from farm.planning import keys
from farm.reports.description import Description
from farm.specs.options import Prune
from farm.specs.precision import CALIBRATED
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.states import EngineState, JobState
from farm.stages import STAGES

#: Of a job's facts: whose work it was, if another farm's. No worker can record it.
MIRRORED = "mirrored"
#: Fields of a build's description that are kept in the row.
_DESCRIPTION = Description.model_fields.keys() - {"same"}


_BUILT, _MEASURED = aliased(Job), aliased(Job)


# Built once: every successful build and measure job runs it.
_COMPLETE = (
    select(
        Wanted.build_id,
        Wanted.target,
        Wanted.precision,
        Wanted.build_job_id,
        Wanted.measure_job_id,
        Build.version_id,
        Build.request,
        EngineRow.id.label("engine_id"),
        _BUILT.outputs,
        _BUILT.facts,
        _BUILT.recipe["tools"].label("toolchain"),
        _MEASURED.facts.label("report"),
    )
    .join(Build, Build.id == Wanted.build_id)
    .join(Version, Version.id == Build.version_id)
    .join(_BUILT, _BUILT.id == Wanted.build_job_id)
    .join(_MEASURED, _MEASURED.id == Wanted.measure_job_id)
    .outerjoin(
        EngineRow,
        and_(
            EngineRow.version_id == Build.version_id,
            EngineRow.build_job_id == Wanted.build_job_id,
            EngineRow.measure_job_id == Wanted.measure_job_id,
        ),
    )
    .where(
        Wanted.engine_id.is_(None),
        # A cancelled build of a deleted version may want what another model's build makes.
        IS_KEPT,
        _BUILT.state == JobState.SUCCEEDED,
        _MEASURED.state == JobState.SUCCEEDED,
    )
    .with_for_update(of=Version, read=True, key_share=True)
)


_COMPLETE_BY_JOB = _COMPLETE.where(
    or_(Wanted.build_job_id == bindparam("job_id"), Wanted.measure_job_id == bindparam("job_id"))
)


_COMPLETE_OF_BUILD = _COMPLETE.where(Wanted.build_id == bindparam("build_id"))


def publish(session: Session, job_id: int) -> None:
    """Publish the engines that are complete now that this job has succeeded."""
    _publish(session, _COMPLETE_BY_JOB, {"job_id": job_id})


def publish_build(session: Session, build_id: str) -> Sequence[Wanted]:
    """Publish the engines that a new build finds complete; return all engines it wants."""
    _publish(session, _COMPLETE_OF_BUILD, {"build_id": build_id})
    wanted = select(Wanted).where(Wanted.build_id == build_id)
    return session.scalars(wanted, execution_options={"populate_existing": True}).all()


def _publish(session: Session, which: Select[Any], parameters: Mapping[str, Any]) -> None:
    session.flush()
    connection = session.connection()
    # Several builds may want the same engine.
    published: dict[tuple[int, int, int], str] = {}
    engines, wanted = [], []
    for found in connection.execute(which, parameters):
        same = (found.version_id, found.build_job_id, found.measure_job_id)
        if same not in published:
            published[same] = found.engine_id or new_id()
            if found.engine_id is None:
                engines.append(_engine(found) | {"id": published[same]})
        wanted.append(
            {
                "of_build": found.build_id,
                "of_target": found.target,
                "of_precision": found.precision,
                "engine": published[same],
            }
        )
    if engines:
        connection.execute(_INSERT, engines)
    if wanted:
        connection.execute(_HAVE, wanted)


# Without the unit of work's objects, which would take longer than the statements.
_INSERT = insert(Base.metadata.tables[EngineRow.__tablename__])
_HAVE = (
    update(Base.metadata.tables[Wanted.__tablename__])
    .where(
        Wanted.build_id == bindparam("of_build"),
        Wanted.target == bindparam("of_target"),
        Wanted.precision == bindparam("of_precision"),
    )
    .values(engine_id=bindparam("engine"))
)


def _same(found: Any) -> str:
    """A key shared by engines that differ at most in the data their model was run on.

    Evaluation samples don't make a different engine: they judge it, and show which of its values leave the
    range of a type. Calibration data do.
    """
    facts, request = found.facts, found.request
    calibrated = found.precision in CALIBRATED
    recipe = {
        "target": found.target,
        "precision": found.precision,
        "runtime_version": facts["runtime_version"],
        "toolchain": found.toolchain,
        "stages": {kind.value: stage.version for kind, stage in STAGES.items()},
        "prune": request.get("prune"),
        "fixed_inputs": request.get("fixed_inputs"),
        "architecture": request["source"].get("architecture"),
        "calibration": _calibration(found) if calibrated else None,
        "profiles": facts.get("profiles"),
        "options": facts.get("options"),
    }
    return keys.key(recipe)


def _calibration(found: Any) -> Any:
    """What an engine was calibrated with; of another farm's, whose data stayed there, the digest alone."""
    mirrored = found.facts.get(MIRRORED) or {}
    given = mirrored.get("materials", {}).get(Role.CALIBRATION)
    asked = found.request.get("calibration")
    if asked:  # as it was before there were images, if these are none
        later = {"preprocess": None, "format": "samples"}
        return {name: one for name, one in asked.items() if name not in later or one != later[name]}
    return given


def _engine(found: Any) -> dict[str, Any]:
    """The columns of a new engine, but its id."""
    facts, report = found.facts, found.report
    target = Target.parse(found.target)
    prune = found.request.get("prune")
    return {
        "version_id": found.version_id,
        "runtime": target.runtime,
        "runtime_version": facts["runtime_version"],
        "gpu": target.gpu,
        "precision": found.precision,
        "prune": str(Prune.model_validate(prune)) if prune else None,
        "digest": found.outputs[Role.ENGINE],
        "accuracy": report["accuracy"],
        "metrics": report["metrics"],
        "metrics_reason": report["metrics_reason"],
        "state": EngineState.DOUBTFUL if report.get("doubts") else EngineState.READY,
        "doubts": report.get("doubts"),
        "io": {name: facts.get(name) for name in _DESCRIPTION} | {"same": _same(found)},
        "toolchain": found.toolchain,
        "build_id": found.build_id,
        "build_job_id": found.build_job_id,
        "measure_job_id": found.measure_job_id,
    }
