"""Registers a version that was copied from another farm, with the work that the other farm did for it.

What the other farm built and measured becomes jobs that have succeeded here, under the keys that they have
there: a submission of the same work reuses them, as it does this farm's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.builds import submit
from farm.builds.attach import columns, insert_rows
from farm.builds.mirrored_jobs import (
    MirroredJobs,
    conflict,
    target_of,
    usable_jobs,
    with_jobs,
)
from farm.builds.versions import Versioned, version_of
from farm.builds.vouched import Vouched
from farm.database.base import now
from farm.database.ids import new_id
from farm.database.tables import (
    Artifact,
    Build,
    BuildJob,
    EngineRow,
    Event,
    Wanted,
)
from farm.errors import Conflict, InvalidRequest, NotFound
from farm.formats.sources import Look
from farm.planning import keys
from farm.registry import interfaces, publish
from farm.reports.records import first_of
from farm.schemas.mirrors import LeftOut, MirroredEngine, Registered
from farm.schemas.submission import BuildRequest
from farm.specs.options import Prune
from farm.specs.states import BuildState, Reuse
from farm.store import held

#: The most targets of a request: `farm.schemas.submission.Targets`; and precisions.
_MOST_TARGETS, _MOST_PRECISIONS = 64, 8


@dataclass
class _Group:
    """Engines that one request could have asked for."""

    engines: list[MirroredJobs] = field(default_factory=list)
    names: set[tuple[str, str]] = field(default_factory=set)

    def takes(self, target: str, precision: str) -> bool:
        return (
            (target, precision) not in self.names
            and len({one for one, _ in self.names} | {target}) <= _MOST_TARGETS
            and len({one for _, one in self.names} | {precision}) <= _MOST_PRECISIONS
        )

    def add(self, one: MirroredJobs) -> None:
        engine = one.said.engine
        self.engines.append(one)
        self.names.add((str(target_of(one.said)), engine.precision))


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
        NotFound: the source, an engine or its layer report isn't in the store.
        Conflict: the version's inputs differ from those of the one before, and nobody said that they may; or
            this farm has results of its own of all this work.
        NameAmbiguous
    """
    version = version_of(session, request)
    submit.check_inputs(session, request, version, look)
    _require_blobs(session, [one.engine.digest for one in said])
    _require_blobs(session, [one.layers for one in said if one.layers is not None])
    usable = usable_jobs(session, said)
    ready: list[MirroredJobs] = []
    left_out: list[LeftOut] = []
    for one in said:
        why = conflict(one, usable)
        if why is not None:
            left_out.append(LeftOut(origin=one.engine.id, why=why))
            continue
        ready.append(
            with_jobs(session, one, usable, model=version.model.name, farm=farm, client=client)
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
                "targets": list(dict.fromkeys(str(target_of(each)) for each in said)),
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
        raise NotFound(f"the blob {missing[0]} isn't here", hint="mirror the version again")
    held.settle(session, wanted)


def _published(
    session: Session, version_id: int, ready: Sequence[MirroredJobs]
) -> dict[tuple[int, int], str]:
    """The version's engines by the jobs that made them."""
    rows = session.execute(
        select(EngineRow.build_job_id, EngineRow.measure_job_id, EngineRow.id).where(
            EngineRow.version_id == version_id,
            EngineRow.build_job_id.in_({one.build.id for one in ready}),
        )
    )
    return {(build, measure): engine_id for build, measure, engine_id in rows}


def _groups(new: Sequence[MirroredJobs]) -> Iterator[_Group]:
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
        name = (str(target_of(said)), said.engine.precision)
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


def _wanted(build_id: str, one: MirroredJobs, farm: str) -> dict[str, Any]:
    target = str(target_of(one.said))
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
