"""What a bench builds: every engine of its targets that can be built. Pure, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.errors import TargetUnsupported
from farm.formats.sources import Look
from farm.planning import feasible, policy, targets
from farm.planning.targets import Choice
from farm.schemas.builds import LeftOut
from farm.schemas.submission import BuildRequest
from farm.specs import target_text
from farm.specs.precision import Precision
from farm.specs.queues import Queue
from farm.specs.runtime import Runtime, Target

#: Precisions by why they can't be built; None for those that can.
_Reasons = Mapping[str | None, Sequence[Precision]]


@dataclass(frozen=True, kw_only=True)
class Every:
    """A bench's targets, each with its precisions, and what is left out."""

    choices: Sequence[Choice]
    left_out: Sequence[LeftOut]


def every(request: BuildRequest, online_queues: Mapping[str, int], look: Look) -> Every:
    """The engines of a bench.

    A target that names its runtime stands for itself, one that doesn't for every runtime. What can't be
    built is left out, and so is what no online worker can build, unless the request waits for workers.

    Parameters:
        online_queues: queue → number of online workers that consume it.
        look: what is known about the source's graph.

    Raises:
        UnknownGpu, InvalidRequest
        TargetUnsupported: nothing is left.
    """
    waits = request.bench is not None and request.bench.wait_for_workers
    choices: list[Choice] = []
    left_out: list[LeftOut] = []
    for target, (asked, precisions) in _asked(request).items():
        offline = None if waits else _offline(target, online_queues)
        reasons = dict(_reasons(request, target, precisions, look, offline))
        built = reasons.pop(None, ())
        if built:
            why = f"every runtime and precision for {asked}"
            choices.append(Choice(asked=asked, target=target, why=why, precisions=tuple(built)))
        left_out += [
            LeftOut(target=str(target), precisions=list(of), why=str(reason))
            for reason, of in reasons.items()
        ]
    if not choices:
        said = "; ".join(f"{one.target}: {one.why}" for one in left_out)
        raise TargetUnsupported(
            f"nothing can be built for {', '.join(request.targets)}: {said}",
            hint="start such a worker (farm worker), or submit with wait_for_workers (--all): the "
            "build then waits for one",
        )
    return Every(choices=choices, left_out=left_out)


def _asked(request: BuildRequest) -> Mapping[Target, tuple[str, Sequence[Precision]]]:
    """The targets, each with how it was asked for first, and its precisions: two tags may be one target."""
    found: dict[Target, tuple[str, Sequence[Precision]]] = {}
    for written in request.targets:
        asked, own = target_text.split(written)
        runtime, tag = targets.parse(written)
        for one in Runtime if runtime is None else [runtime]:
            target = targets.normal(one, tag)
            first, before = found.get(target, (asked, ()))
            found[target] = first, [*before, *(own or request.precisions or Precision)]
    return found


def _offline(target: Target, online_queues: Mapping[str, int]) -> str | None:
    queue = policy.build_queue(target)
    if online_queues.get(queue):
        return None
    worker = Queue.parse(queue)
    return f"no online worker can build it: it takes {worker.worker if worker else 'a CPU worker'}"


def _reasons(
    request: BuildRequest,
    target: Target,
    precisions: Sequence[Precision],
    look: Look,
    offline: str | None,
) -> _Reasons:
    found: defaultdict[str | None, list[Precision]] = defaultdict(list)
    for precision in dict.fromkeys(precisions):
        reason = feasible.refusal(request, target, precision, look)
        # Without what to use instead: the bench builds that anyway.
        found[reason.partition(";")[0] if reason else offline].append(precision)
    return found
