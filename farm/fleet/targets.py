"""What the online workers can build."""

from __future__ import annotations

from farm.fleet.workers import Fleet
from farm.planning import policy
from farm.schemas.fleet import TargetView
from farm.specs import gpus
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target


def target_views(fleet: Fleet) -> list[TargetView]:
    """Every runtime × GPU tag: buildable now, once a matching worker joins, or unsupported, and why."""
    tags = (gpus.CPU, *gpus.COMPUTE_CAPABILITIES)
    return [_target_view(fleet, Target(runtime=r, gpu=tag)) for tag in tags for r in Runtime]


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
