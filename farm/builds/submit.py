"""Submitting builds: they join existing jobs or create new ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.builds.attach import Submitted, attach_jobs, columns, insert_rows
from farm.builds.planned import Chosen, chosen, plan_of
from farm.builds.versions import Versioned, version_of
from farm.database import noted
from farm.database.base import now
from farm.database.ids import new_id
from farm.database.tables import (
    Build,
    Version,
)
from farm.errors import Conflict
from farm.fleet.workers import Fleet
from farm.formats.sources import Look
from farm.planning import targets
from farm.planning.plan import Plan
from farm.queue import counted
from farm.registry import goals, interfaces, labels
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet
from farm.specs.runtime import Runtime
from farm.specs.states import BuildState
from farm.tracing import spans
from farm.trust import plugins


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a farm plans submissions by."""

    fleet: Fleet
    runtimes: Sequence[Runtime]
    plugin_keys: Collection[str] = ()
    gates: GateSet = field(default_factory=GateSet)  #: for those that the request doesn't set
    most_jobs: int | None = None  #: limit on a build's number of jobs; None for none


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A submission that is accepted, of which only the version is there yet."""

    request: BuildRequest  #: in the model's own name
    version: Versioned
    gates: GateSet
    chosen: Chosen
    planned: Plan


def prepare(
    session: Session,
    request: BuildRequest,
    terms: Terms,
    look: Look,
    *,
    may_be_absent: bool = False,
) -> Prepared:
    """Check a submission and plan its jobs.

    Parameters:
        look: what is known about the source's graph.
        may_be_absent: whether its blobs needn't be here.

    Raises:
        InvalidRequest, UnknownGpu, TargetUnsupported, CalibrationMissing, PluginRefused, NameAmbiguous
        NotFound: a blob hasn't been uploaded.
        NameAmbiguous
        Conflict: ``new_inputs`` is missing.
    """
    version = version_of(session, request, may_be_absent=may_be_absent)
    request = version.in_its_name(request)
    check_inputs(session, request, version, look)
    gates = terms.gates.changed(request.gates) if request.gates else terms.gates
    found = chosen(session, request, version.model, terms.fleet, terms.runtimes, look)
    planned = plan_of(request, found.choices, terms.fleet, gates, look, terms.most_jobs)
    plugins.require(session, request.options.plugins, terms.plugin_keys)
    return Prepared(request=request, version=version, gates=gates, chosen=found, planned=planned)


def submit_build(
    session: Session,
    request: BuildRequest,
    terms: Terms,
    *,
    look: Look = Look(),
    client: str = "",
    idempotency_key: str | None = None,
) -> Submitted:
    """Accept a build: plan its jobs, and create those that don't exist yet. The build stores its gates.

    Raises:
        FarmError: as ``prepare``.
        Conflict: the idempotency key was used for another request.
    """
    document = request.model_dump(mode="json")
    if idempotency_key is not None:
        first = _first_with(session, idempotency_key, document)
        if first is not None:
            return Submitted(build_id=first.id, attached=None)
    found = prepare(session, request, terms, look)
    request, version = found.request, found.version
    left_out = found.chosen.left_out
    build = Build(
        id=new_id(),
        version_id=version.id,
        state=BuildState.QUEUED,
        request=document,
        priority=request.priority,
        client=client,
        idempotency_key=idempotency_key,
        gates=found.gates.model_dump(),
        left_out=None if left_out is None else [one.model_dump(mode="json") for one in left_out],
        trace=spans.reserved(),
        created_at=now(),
    )
    insert_rows(session, Build, [columns(build)])
    counted.submitted(session)
    _remember(session, request, version.id, build.id)
    noted.note(session, kind="build", build_id=build.id, state=build.state, data={})
    submitted = attach_jobs(session, build, request.model, version.number, found.planned)
    if not version.is_known and submitted.has_finished_jobs:
        interfaces.reused(session, version.id, build.id)
    return submitted


def _remember(session: Session, request: BuildRequest, version_id: int, build_id: str) -> None:
    """Keep a request's goal, its labels and its note."""
    _keep_goal(session, request, version_id)
    labels.keep(session, Build, build_id, request.labels)
    labels.keep(session, Version, version_id, request.labels)
    if request.note:
        session.get_one(Version, version_id).note = request.note
        session.flush()


def check_inputs(session: Session, request: BuildRequest, version: Versioned, look: Look) -> None:
    """Refuse a version with other inputs than the one before, unless the request says that they may be.

    Raises:
        Conflict
    """
    if version.is_new:
        interfaces.declared(session, version.id, look.interface)
    if request.new_inputs:
        interfaces.accept(session, version.id)
    elif version.is_new or (version.is_held and request.bench is None):  # a bench changes no pull
        interfaces.require_word(session, version.id)


def _keep_goal(session: Session, request: BuildRequest, version_id: int) -> None:
    """Keep the goal that a bench sets, for each of its GPUs."""
    goal = request.bench.kept_goal() if request.bench else None
    if goal is not None:
        for gpu in dict.fromkeys(targets.parse(asked)[1] for asked in request.targets):
            goals.keep(session, version_id, gpu, goal)


#: Fields that requests of earlier farms lack.
_ADDED: dict[str, Any] = {
    "bench": None,
    "new_inputs": False,
    "note": None,
    "skip_unsupported": False,
}


def _first_with(session: Session, key: str, document: dict[str, Any]) -> Build | None:
    """The build that this request made before."""
    first = session.scalar(select(Build).where(Build.idempotency_key == key))
    if first is not None and _ADDED | first.request != document:
        raise Conflict("this Idempotency-Key was used for another request")
    return first
