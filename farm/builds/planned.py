"""A build's plan, given the current fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from farm.database.tables import (
    Build,
)
from farm.fleet.workers import Fleet
from farm.formats.sources import TAKEN, Look
from farm.planning import feasible, targets
from farm.planning.every import every
from farm.planning.plan import Plan, plan
from farm.planning.refused import all_at_once, choose_all, without
from farm.planning.targets import Choice, Measured
from farm.registry.measured import measured
from farm.registry.names import Named
from farm.schemas.builds import LeftOut
from farm.schemas.submission import BuildRequest
from farm.specs import gpus, target_text, texts
from farm.specs.gates import GateSet
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The targets of a request."""

    choices: Sequence[Choice]
    left_out: Sequence[LeftOut] | None = None  #: what isn't built; None if that would be an error


def chosen(
    session: Session,
    request: BuildRequest,
    model: Named,
    fleet: Fleet,
    runtimes: Sequence[Runtime],
    look: Look,
) -> Chosen:
    """Choose a request's targets, given what has been measured and who is online.

    Raises:
        UnknownGpu, InvalidRequest, TargetUnsupported, CalibrationMissing, SourceRefused
    """
    online = fleet.online_queues
    if request.bench is not None:
        found = every(request, online, look)
        return Chosen(choices=found.choices, left_out=found.left_out)
    feasible.check_prune(request)

    def choose(asked: str) -> Choice:
        precisions = target_text.split(asked).precisions or request.precisions

        def refusal(target: Target) -> str | None:
            reasons = (feasible.refusal(request, target, one, look) for one in precisions)
            return next(filter(None, reasons), None)

        return targets.choose(
            asked,
            runtimes=runtimes,
            online_queues=online,
            refusal=refusal,
            measured=_measured(session, request, model, asked, precisions),
        )

    choices, refused = choose_all(request, choose)
    refused += feasible.refused(request, choices, look)
    if not request.skip_unsupported:
        if refused:
            raise all_at_once(refused)
        return Chosen(choices=choices)
    kept = without(choices, request.precisions, refused)
    return Chosen(choices=kept, left_out=[one.left_out() for one in refused])


def _measured(
    session: Session,
    request: BuildRequest,
    model: Named,
    asked: str,
    precisions: Sequence[Precision],
) -> Sequence[Measured]:
    runtime, tag = targets.parse(asked)
    if runtime is not None or tag == gpus.CPU:
        return ()
    prune = None if request.prune is None else str(request.prune)
    return measured(session, model, tag, precisions, prune)


def stored_request(build: Build) -> BuildRequest:
    """A build's request. Without what older farms took in any form: labels, the note, and controls in
    targets, which mean the same without."""
    said = build.request
    targets = [texts.without(one) for one in said["targets"]]
    return BuildRequest.model_validate(said | {"labels": {}, "note": None, "targets": targets})


def plan_of(
    request: BuildRequest,
    choices: Sequence[Choice],
    fleet: Fleet,
    gates: GateSet,
    look: Look = TAKEN,
    most_jobs: int | None = None,
) -> Plan:
    return plan(request, choices, fleet.toolchain, fleet.online_queues, gates, look, most_jobs)


def gates_of(build: Build) -> GateSet:
    """A build's gates; the defaults for a build submitted before gates existed."""
    return GateSet.model_validate(build.gates or {})
