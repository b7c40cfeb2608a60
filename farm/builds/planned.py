"""A build's plan, given the current fleet."""

from __future__ import annotations

from collections.abc import Sequence

from farm.database.tables import (
    Build,
)
from farm.fleet.workers import Fleet
from farm.formats.sources import TAKEN, Look
from farm.planning import targets
from farm.planning.plan import Plan, plan
from farm.planning.targets import Choice
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet
from farm.specs.runtime import Runtime


def choices_of(request: BuildRequest, fleet: Fleet, runtimes: Sequence[Runtime]) -> list[Choice]:
    online = fleet.online_queues
    return [
        targets.choose(asked, runtimes=runtimes, online_queues=online) for asked in request.targets
    ]


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
