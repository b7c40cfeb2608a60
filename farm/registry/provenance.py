"""An engine's provenance, and other facts that aren't in its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, Job, Wanted
from farm.errors import NotFound
from farm.planning import parameters
from farm.planning.recipe import Recipe
from farm.registry.publish import MIRRORED
from farm.specs.roles import Role
from farm.specs.states import EngineState


def doubts(session: Session, wanted: Sequence[Wanted]) -> dict[str, list[str]]:
    """The doubtful ones of these engines: engine id → reasons."""
    ids = [want.engine_id for want in wanted if want.engine_id]
    if not ids:
        return {}
    rows = session.execute(
        select(EngineRow.id, EngineRow.doubts).where(
            EngineRow.id.in_(ids), EngineRow.state == EngineState.DOUBTFUL
        )
    )
    return {
        engine_id: [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
        for engine_id, told in rows
    }


def layer_report(session: Session, engine_id: str) -> str:
    """The digest of an engine's layer report.

    Raises:
        NotFound
    """
    outputs = session.scalar(
        select(Job.outputs)
        .join(EngineRow, EngineRow.build_job_id == Job.id)
        .where(EngineRow.id == engine_id)
    )
    if outputs is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    if Role.LAYERS not in outputs:
        raise NotFound(f"engine {engine_id!r} was built without a layer report")
    return outputs[Role.LAYERS]


def provenance_of(session: Session, engine_id: str) -> dict[str, Any]:
    """An engine's provenance: the jobs that built and measured it, with everything their keys cover.

    ``mirrored`` says whose work a job was, if it was another farm's.
    """
    row = session.get_one(EngineRow, engine_id)
    jobs = {"build": row.build_job_id, "measure": row.measure_job_id}
    found = {name: session.get_one(Job, job_id) for name, job_id in jobs.items()}
    return {
        name: {
            "job": job.id,
            "key": job.key,
            "recipe": job.recipe | {"params": parameters.whole(session, Recipe.read(job.recipe))},
            "worker": job.owner,
        }
        | _mirrored(job)
        for name, job in found.items()
    }


def _mirrored(job: Job) -> dict[str, Any]:
    # Earlier versions stored anything a stage sent.
    found = job.facts.get(MIRRORED) if isinstance(job.facts, dict) else None
    return {MIRRORED: found} if found else {}
