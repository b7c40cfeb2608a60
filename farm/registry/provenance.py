"""An engine's provenance, and other facts that aren't in its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, Job, JobInput, Wanted
from farm.errors import NotFound
from farm.planning import parameters
from farm.planning.recipe import Given, Recipe
from farm.registry.publish import MIRRORED
from farm.schemas.engines import EngineView
from farm.specs.roles import GIVEN, Role
from farm.specs.states import EngineState

_MATERIALS = (*GIVEN, Role.TYPED, Role.TYPED_FP16, Role.TYPED_HALF)


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


def jobs_of(session: Session, engine_id: str) -> list[Job]:
    """The jobs that an engine comes from: its measurement, its build, and all before them."""
    row = session.get_one(EngineRow, engine_id)
    found: dict[int, Job] = {}
    ahead = [row.measure_job_id, row.build_job_id]
    while ahead:
        job_id = ahead.pop(0)
        if job_id not in found:
            found[job_id] = session.get_one(Job, job_id)
            needs = select(JobInput.needs_id).where(JobInput.job_id == job_id)
            ahead += session.scalars(needs.order_by(JobInput.role))
    return list(found.values())


def materials(view: EngineView, jobs: Sequence[Job]) -> dict[str, str]:
    """What an engine was made from and judged on: role → digest."""
    found = {str(Role.SOURCE): view.source_digest}
    for job in jobs:
        given = {
            str(role): one.digest
            for role, one in Recipe.read(job.recipe).inputs.items()
            if isinstance(one, Given)
        }
        made = {str(role): digest for role, digest in (job.outputs or {}).items()}
        for role in _MATERIALS:
            if role in given or role in made:
                found.setdefault(str(role), given.get(role) or made[role])
    for job in jobs:  # what another farm's jobs came from isn't here
        facts = job.facts if isinstance(job.facts, dict) else {}
        found = facts.get(MIRRORED, {}).get("materials", {}) | found
    return found
