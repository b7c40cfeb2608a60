"""Resolves a user's request to a target: a runtime and a GPU tag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from farm.errors import InvalidRequest, TargetUnsupported
from farm.planning import policy
from farm.specs import gpus
from farm.specs.runtime import Runtime, Target


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The target chosen for a user's request, and why."""

    asked: str
    target: Target
    why: str

    @property
    def compute_capability(self) -> str:
        return gpus.compute_capability(self.target.gpu)


def parse(asked: str) -> tuple[Runtime | None, str]:
    """Split ``tensorrt-rtx:sm_120`` or ``rtx-4090`` into a runtime, if named, and a canonical tag.

    Raises:
        UnknownGpu, InvalidRequest: the tag or the runtime doesn't exist.
    """
    name, colon, tag = asked.strip().rpartition(":")
    if not colon:
        return None, gpus.canonical(asked)
    try:
        runtime = Runtime(name.strip().lower())
    except ValueError:
        known = ", ".join(Runtime)
        raise InvalidRequest(
            f"unknown runtime {name!r}", hint=f"the runtimes are {known}"
        ) from None
    return runtime, gpus.canonical(tag)


def choose(asked: str, *, runtimes: Iterable[Runtime], online_queues: Mapping[str, int]) -> Choice:
    """Choose the target for a user's request.

    Without a runtime, it takes the first of ``runtimes`` that an online worker can build for, or else the
    first that could be built at all.

    Parameters:
        online_queues: queue → number of online workers that consume it.

    Raises:
        UnknownGpu, InvalidRequest, TargetUnsupported
    """
    runtime, tag = parse(asked)
    if runtime is not None:
        reason = policy.refusal(Target(runtime=runtime, gpu=tag))
        if reason:
            raise TargetUnsupported(f"{asked}: {reason}")
        return Choice(asked=asked, target=_normal(runtime, tag), why="named in the request")
    if tag == gpus.CPU:
        cpu = Target(runtime=Runtime.ONNXRUNTIME, gpu=tag)
        return Choice(asked=asked, target=cpu, why="cpu means onnxruntime:cpu")
    candidates = [_normal(one, tag) for one in runtimes]
    possible = [target for target in candidates if policy.refusal(target) is None]
    for target in possible:
        if online_queues.get(policy.build_queue(target)):
            return Choice(
                asked=asked,
                target=target,
                why=f"first of {', '.join(runtimes)} that an online worker can build for {tag}",
            )
    if possible:
        return Choice(
            asked=asked,
            target=possible[0],
            why=f"no online worker can build for {tag}; waits for one with {possible[0]}",
        )
    reasons = "; ".join(filter(None, map(policy.refusal, candidates)))
    raise TargetUnsupported(f"{asked}: {reasons}")


def _normal(runtime: Runtime, tag: str) -> Target:
    """Normalise a target: TensorRT-RTX and AOTInductor build per compute capability, TensorRT per product.

    For classic TensorRT, the same compute capability doesn't mean the same engine: a plan contains tactics
    tuned on one product.
    """
    if runtime in (Runtime.TENSORRT_RTX, Runtime.AOTINDUCTOR):
        tag = gpus.compute_capability(tag)
    return Target(runtime=runtime, gpu=tag)
