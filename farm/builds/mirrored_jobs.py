"""The jobs that another farm did for an engine, as jobs of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.builds.vouched import Done, Vouched, build_facts, measure_facts
from farm.database.base import now
from farm.database.tables import IS_USABLE, Job, JobInput
from farm.planning import jobs as planned
from farm.planning import parameters
from farm.registry import publish
from farm.specs.queues import CPU_QUEUE
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.states import JobState


@dataclass(frozen=True, kw_only=True)
class MirroredJobs:
    """An engine, and the rows of the jobs that made it."""

    said: Vouched
    build: Job
    measure: Job


def target_of(said: Vouched) -> Target:
    return Target(runtime=said.engine.runtime, gpu=said.engine.gpu)


def usable_jobs(session: Session, said: Sequence[Vouched]) -> dict[str, Job]:
    found = {job.key for one in said for job in (one.build, one.measure)}
    rows = session.scalars(
        select(Job)
        .where(Job.key.in_(found), IS_USABLE)
        .order_by(Job.id)
        .with_for_update(key_share=True)
    )
    return {row.key: row for row in rows}


def conflict(said: Vouched, usable: Mapping[str, Job]) -> str | None:
    """Why the other farm's result can't stand beside what this farm has of the same work."""
    for done in (said.build, said.measure):
        job = usable.get(done.key)
        if job is not None and job.state != JobState.SUCCEEDED:
            return f"this farm is about to do the same work itself: {job.title}, job {job.id}"
    built = usable.get(said.build.key)
    if built is None and said.measure.key in usable and Role.ENGINE in said.measure.recipe.inputs:
        return "this farm measured an engine of the same work, with other bytes"
    if built is not None and (built.outputs or {}).get(Role.ENGINE) != said.engine.digest:
        return f"this farm built the same itself, with other bytes: job {built.id}"
    return None


def with_jobs(
    session: Session, said: Vouched, usable: dict[str, Job], *, model: str, farm: str, client: str
) -> MirroredJobs:
    """The jobs that made an engine: those that are here, or else new ones."""
    outputs = {Role.ENGINE.value: said.engine.digest}
    if said.layers is not None:
        outputs[Role.LAYERS.value] = said.layers
    build_told = build_facts(said.engine) | {"runtime_version": said.engine.runtime_version}
    made: dict[str, tuple[Done, dict[str, Any], dict[str, str]]] = {
        "build": (said.build, build_told, outputs),
        "measure": (said.measure, measure_facts(said.engine), {}),
    }
    for done, facts, left in made.values():
        if done.key not in usable:
            parameters.keep(session, done.shared)
            told = facts | {publish.MIRRORED: _origin(said, done, farm)}
            usable[done.key] = _job(session, said, done, told, left, model=model, client=client)
    build, measure = usable[said.build.key], usable[said.measure.key]
    if Role.ENGINE in said.measure.recipe.inputs:
        edge = (measure.id, Role.ENGINE.value)
        if session.get(JobInput, edge) is None:
            session.add(
                JobInput(job_id=edge[0], role=edge[1], needs_id=build.id, output=Role.ENGINE.value)
            )
            session.flush()
    return MirroredJobs(said=said, build=build, measure=measure)


def _origin(said: Vouched, done: Done, farm: str) -> dict[str, Any]:
    """Whose work a job was."""
    return {
        "farm": farm,
        "signing_key": said.key.fingerprint if said.key is not None else None,
        "engine": said.engine.id,
        "version": said.engine.version,
        "worker": done.worker,
        "materials": dict(said.materials),
    }


def _job(
    session: Session,
    said: Vouched,
    done: Done,
    facts: dict[str, Any],
    outputs: dict[str, str],
    *,
    model: str,
    client: str,
) -> Job:
    kind, precision = done.recipe.kind, said.engine.precision
    # A measurement of the typed ONNX serves all targets.
    target = target_of(said) if done.params.get("target") is not None else None
    at = now()
    row = Job(
        key=done.key,
        kind=kind,
        title=planned.title(kind, model, precision, target),
        state=JobState.SUCCEEDED,
        recipe=done.recipe.document,
        runtime=target.runtime if target else None,
        target=str(target) if target else None,
        precision=precision,
        queue=CPU_QUEUE,
        priority=0,
        client=client,
        outputs=outputs,
        facts=facts,
        created_at=at,
        finished_at=at,
    )
    session.add(row)
    session.flush()
    return row
