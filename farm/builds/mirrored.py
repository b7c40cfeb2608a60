"""Registers a version that was copied from another farm, with the work that the other farm did for it.

What the other farm built and measured becomes jobs that have succeeded here, under the keys that they have
there: a submission of the same work reuses them, as it does this farm's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.builds import submit
from farm.builds.attach import columns, insert_rows
from farm.builds.versions import Versioned, version_of
from farm.builds.vouched import Done, Vouched, build_facts, measure_facts
from farm.database.base import now
from farm.database.ids import new_id
from farm.database.tables import (
    IS_USABLE,
    Artifact,
    Build,
    BuildJob,
    EngineRow,
    Event,
    Job,
    JobInput,
    Wanted,
)
from farm.errors import Conflict, InvalidRequest, NotFound
from farm.formats.sources import Look
from farm.planning import jobs as planned
from farm.planning import keys, parameters
from farm.registry import interfaces, publish
from farm.reports.records import first_of
from farm.schemas.mirrors import LeftOut, MirroredEngine, Registered
from farm.schemas.submission import BuildRequest
from farm.specs.options import Prune
from farm.specs.queues import CPU_QUEUE
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.states import BuildState, JobState, Reuse

#: The most targets of a request: `farm.schemas.submission.Targets`; and precisions.
_MOST_TARGETS, _MOST_PRECISIONS = 64, 8


@dataclass(frozen=True, kw_only=True)
class _Jobs:
    """An engine, and the rows of the jobs that made it."""

    said: Vouched
    build: Job
    measure: Job


@dataclass
class _Group:
    """Engines that one request could have asked for."""

    engines: list[_Jobs] = field(default_factory=list)
    names: set[tuple[str, str]] = field(default_factory=set)

    def takes(self, target: str, precision: str) -> bool:
        return (
            (target, precision) not in self.names
            and len({one for one, _ in self.names} | {target}) <= _MOST_TARGETS
            and len({one for _, one in self.names} | {precision}) <= _MOST_PRECISIONS
        )

    def add(self, one: _Jobs) -> None:
        engine = one.said.engine
        self.engines.append(one)
        self.names.add((str(_target(one.said)), engine.precision))


def source_of(model: str, said: Sequence[Vouched], *, new_inputs: bool) -> BuildRequest:
    """The request of a version with this source, for the first of its engines.

    Raises:
        InvalidRequest: the engines aren't of one version.
    """
    requests = [_request(model, [one], new_inputs=new_inputs) for one in said]
    first = requests[0]
    for one in requests:
        if (one.source, one.fixed_inputs) != (first.source, first.fixed_inputs):
            raise InvalidRequest("the engines aren't of one version: their sources differ")
    return first


def register(
    session: Session,
    request: BuildRequest,
    said: Sequence[Vouched],
    *,
    farm: str,
    look: Look = Look(),
    client: str = "",
) -> Registered:
    """Have these engines in the registry, and the work that made them. Idempotent.

    Parameters:
        request: as `source_of`.
        farm: the address of the one that they are of.
        look: what is known about the source's graph.

    Raises:
        NotFound: the source, or an engine, isn't in the store.
        Conflict: the version's inputs differ from those of the one before, and nobody said that they may; or
            this farm has results of its own of all this work.
        NameAmbiguous
    """
    version = version_of(session, request)
    submit.check_inputs(session, request, version, look)
    _require_blobs(session, [one.engine.digest for one in said])
    usable = _usable(session, said)
    ready: list[_Jobs] = []
    left_out: list[LeftOut] = []
    for one in said:
        why = _conflict(one, usable)
        if why is not None:
            left_out.append(LeftOut(origin=one.engine.id, why=why))
            continue
        ready.append(
            _with_jobs(session, one, usable, model=version.model.name, farm=farm, client=client)
        )
    if not ready:
        raise Conflict(f"none of its engines can be registered: {left_out[0].why}")
    before = _published(session, version.id, ready)
    new = [one for one in ready if (one.build.id, one.measure.id) not in before]
    for group in _groups(new):
        _build(session, request, version, group, farm=farm, client=client)
    there = _published(session, version.id, ready)
    engines = [
        MirroredEngine(id=there[pair], origin=one.said.engine.id, is_new=pair not in before)
        for one in ready
        for pair in [(one.build.id, one.measure.id)]
    ]
    return Registered(
        model=version.model.name, version=version.number, engines=engines, left_out=left_out
    )


def _request(model: str, said: Sequence[Vouched], *, new_inputs: bool = False) -> BuildRequest:
    """What would have been asked for these engines, less the data, which stay on the other farm."""
    one = said[0]
    params, prune = one.measure.params, one.engine.prune
    try:
        return BuildRequest.model_validate(
            {
                "model": model,
                "source": {
                    "digest": one.engine.source_digest,
                    "format": params.get("format"),
                    "architecture": params.get("architecture"),
                },
                "precisions": list(dict.fromkeys(each.engine.precision for each in said)),
                "targets": list(dict.fromkeys(str(_target(each)) for each in said)),
                "profiles": params.get("profiles") or [],
                "fixed_inputs": params.get("fixed_inputs") or {},
                "options": one.build.params.get("options") or {},
                "prune": Prune.parse(prune) if prune else None,
                "new_inputs": new_inputs,
            }
        )
    except ValidationError as err:
        raise InvalidRequest(
            f"engine {one.engine.id} can't be registered: {first_of(err)}"
        ) from None


def _target(said: Vouched) -> Target:
    return Target(runtime=said.engine.runtime, gpu=said.engine.gpu)


def _require_blobs(session: Session, digests: Iterable[str]) -> None:
    """Keep these blobs from garbage collection until this transaction ends.

    Raises:
        NotFound
    """
    wanted = set(digests)
    there = session.scalars(
        select(Artifact.digest)
        .where(Artifact.digest.in_(wanted), Artifact.lost_at.is_(None))
        .with_for_update(key_share=True, read=True)
    )
    missing = sorted(wanted - set(there))
    if missing:
        raise NotFound(f"the engine {missing[0]} isn't here", hint="mirror the version again")


def _usable(session: Session, said: Sequence[Vouched]) -> dict[str, Job]:
    found = {job.key for one in said for job in (one.build, one.measure)}
    rows = session.scalars(
        select(Job)
        .where(Job.key.in_(found), IS_USABLE)
        .order_by(Job.id)
        .with_for_update(key_share=True)
    )
    return {row.key: row for row in rows}


def _conflict(said: Vouched, usable: Mapping[str, Job]) -> str | None:
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


def _with_jobs(
    session: Session, said: Vouched, usable: dict[str, Job], *, model: str, farm: str, client: str
) -> _Jobs:
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
    return _Jobs(said=said, build=build, measure=measure)


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
    target = _target(said) if done.params.get("target") is not None else None
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


def _published(
    session: Session, version_id: int, ready: Sequence[_Jobs]
) -> dict[tuple[int, int], str]:
    """The version's engines by the jobs that made them."""
    rows = session.execute(
        select(EngineRow.build_job_id, EngineRow.measure_job_id, EngineRow.id).where(
            EngineRow.version_id == version_id,
            EngineRow.build_job_id.in_({one.build.id for one in ready}),
        )
    )
    return {(build, measure): engine_id for build, measure, engine_id in rows}


def _groups(new: Sequence[_Jobs]) -> Iterator[_Group]:
    """Engines by the request that could have asked for them."""
    groups: dict[str, list[_Group]] = {}
    for one in new:
        said = one.said
        alike = groups.setdefault(
            keys.key(
                {
                    "options": said.build.params.get("options"),
                    "profiles": said.measure.params.get("profiles"),
                    "prune": said.engine.prune,
                }
            ),
            [],
        )
        name = (str(_target(said)), said.engine.precision)
        group = next((group for group in alike if group.takes(*name)), None)
        if group is None:
            group = _Group()
            alike.append(group)
        group.add(one)
    for alike in groups.values():
        yield from alike


def _build(
    session: Session,
    request: BuildRequest,
    version: Versioned,
    group: _Group,
    *,
    farm: str,
    client: str,
) -> None:
    """A build that has all these engines, and has ended."""
    said = [one.said for one in group.engines]
    asked = _request(request.model, said, new_inputs=request.new_inputs)
    at = now()
    build = Build(
        id=new_id(),
        version_id=version.id,
        state=BuildState.SUCCEEDED,
        request=asked.model_dump(mode="json"),
        priority=asked.priority,
        client=client,
        idempotency_key=None,
        gates=None,
        left_out=None,
        created_at=at,
        started_at=at,
        finished_at=at,
    )
    insert_rows(session, Build, [columns(build)])
    ended = {"build_id": build.id, "kind": "build", "state": build.state, "data": {}, "at": at}
    insert_rows(session, Event, [ended])
    ids = dict.fromkeys(job.id for one in group.engines for job in (one.build, one.measure))
    insert_rows(
        session,
        BuildJob,
        [
            {"build_id": build.id, "job_id": job_id, "reuse": Reuse.CACHED, "position": position}
            for position, job_id in enumerate(ids)
        ],
    )
    insert_rows(session, Wanted, [_wanted(build.id, one, farm) for one in group.engines])
    publish.publish_build(session, build.id)
    if not version.is_known:
        interfaces.reused(session, version.id, build.id)


def _wanted(build_id: str, one: _Jobs, farm: str) -> dict[str, Any]:
    target = str(_target(one.said))
    return {
        "build_id": build_id,
        "target": target,
        "precision": one.said.engine.precision,
        "asked": target,
        "why": f"mirrored from {farm}",
        "build_job_id": one.build.id,
        "measure_job_id": one.measure.id,
        "engine_id": None,
    }
