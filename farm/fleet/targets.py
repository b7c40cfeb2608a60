"""What the online workers can build."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from farm.fleet.workers import Fleet
from farm.planning import policy
from farm.schemas.fleet import TargetView
from farm.specs import gpus
from farm.specs.precision import Precision
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.runtime import Runtime, Target


def target_views(fleet: Fleet) -> list[TargetView]:
    """Every runtime × GPU tag: buildable now, once a matching worker joins, or unsupported, and why."""
    return [_target_view(fleet, target) for target in _every()]


@cache
def queues() -> tuple[str, ...]:
    """Every queue that a job for a whole GPU or the CPU can be in."""
    found = [CPU_QUEUE]
    for target in _every():
        if policy.refusal(target) is None:
            found += [policy.build_queue(target), str(Queue.of(target))]
    return tuple(dict.fromkeys(found))


def _every() -> Iterator[Target]:
    for tag in (gpus.CPU, *gpus.COMPUTE_CAPABILITIES):
        yield from (Target(runtime=runtime, gpu=tag) for runtime in Runtime)


def _target_view(fleet: Fleet, target: Target) -> TargetView:
    queue = policy.build_queue(target)
    refused = policy.refusal(target)
    online = fleet.online_queues.get(queue, 0)
    if refused:
        status, why = "unsupported", str(refused)
    elif online:
        status, why = "buildable", f"{online} worker{'s' * (online > 1)} online"
    else:
        status, why = (
            "waits-for-worker",
            f"no online worker consumes {queue}; start one: farm worker",
        )
    notes = filter(None, (policy.note(target, precision) for precision in Precision))
    why = "; ".join([why, *(() if refused else notes)])
    return TargetView.model_validate(
        {
            "target": str(target),
            "runtime": target.runtime,
            "gpu": target.gpu,
            "compute_capability": gpus.compute_capability(target.gpu),
            "products": gpus.products_of(target.gpu),
            "status": status,
            "why": why,
            "precisions": []
            if refused
            else [p for p in Precision if policy.refusal(target, p) is None],
        }
    )
