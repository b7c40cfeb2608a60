"""Resolves a user's request to a target: a runtime and a GPU tag."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from farm.errors import InvalidRequest, TargetUnsupported
from farm.planning import policy
from farm.specs import gpus, target_text
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.triton import UNSUPPORTED


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The target chosen for a user's request, and why."""

    asked: str  #: without its precisions
    target: Target
    why: str
    precisions: tuple[Precision, ...] = ()  #: if not those of the request

    @property
    def compute_capability(self) -> str:
        return gpus.compute_capability(self.target.gpu)

    def of(self, requested: Sequence[Precision]) -> Sequence[Precision]:
        """The precisions to build it in."""
        return self.precisions or requested


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A runtime whose engines for a GPU have been measured."""

    runtime: Runtime
    why: str  #: where it stands, in words


Refuses = Callable[[Target], str | None]
"""Why a target can't be built for a request, in words; None if it can."""


def parse(asked: str) -> tuple[Runtime | None, str]:
    """Split ``tensorrt-rtx:sm_120`` or ``rtx-4090`` into a runtime, if named, and a canonical tag.

    Precisions at its end are left out.

    Raises:
        UnknownGpu, InvalidRequest: the tag, the runtime or a precision doesn't exist.
    """
    asked = target_text.split(asked).target
    name, colon, tag = asked.rpartition(":")
    if not colon:
        return None, _gpu(asked)
    try:
        runtime = Runtime(name.strip().lower())
    except ValueError:
        raise _unknown(name, tag) from None
    return runtime, _gpu(tag)


def _gpu(tag: str) -> str:
    if tag.lower() in frozenset(Precision):
        raise InvalidRequest(
            f"{tag} is a precision, not a GPU",
            hint=f"name the target it is for: h100:{tag}; or pass it as a precision of all targets",
        )
    if tag.lower() in frozenset(Runtime):
        raise InvalidRequest(f"{tag} is a runtime, not a GPU", hint=f"add the GPU: {tag}:TAG")
    return gpus.canonical(tag)


def _unknown(name: str, last: str) -> InvalidRequest:
    """The error for ``NAME:LAST`` where the first isn't a runtime."""
    target = name.rpartition(":")[2]
    if gpus.is_known(target):
        precisions = ", ".join(Precision)
        return InvalidRequest(
            f"{last!r} after {name!r} isn't a precision", hint=f"the precisions are {precisions}"
        )
    known = ", ".join(Runtime)
    return InvalidRequest(f"unknown runtime {name!r}", hint=f"the runtimes are {known}")


def choose(
    asked: str,
    *,
    runtimes: Sequence[Runtime],
    online_queues: Mapping[str, int],
    refusal: Refuses = policy.refusal,
    measured: Sequence[Measured] = (),
) -> Choice:
    """Choose the target for a user's request.

    Without a runtime, it takes the fastest measured one that an online worker can build, or else the first
    of ``runtimes`` that one can, or else the first that could be built at all. ``cpu`` means
    ``onnxruntime:cpu``.

    Parameters:
        online_queues: queue → number of online workers that consume it.
        refusal: why the request's engines can't be built for a target. If that is so for every runtime,
            one that the tag allows is chosen all the same, for the plan to report the reason.
        measured: the runtimes with comparable figures of this model on this GPU, fastest first.

    Raises:
        UnknownGpu, InvalidRequest, TargetUnsupported
    """
    asked, own = target_text.split(asked)
    runtime, tag = parse(asked)
    chosen = partial(Choice, asked=asked, precisions=own)
    if runtime is not None:
        return chosen(target=named(asked), why="named in the request")
    if tag == gpus.CPU:
        cpu = Target(runtime=Runtime.ONNXRUNTIME, gpu=tag)
        return chosen(target=cpu, why="cpu means onnxruntime:cpu")
    candidates = [normal(one, tag) for one in runtimes]
    possible = [target for target in candidates if policy.refusal(target) is None]
    if not possible:
        reasons = "; ".join(filter(None, map(policy.refusal, candidates)))
        raise TargetUnsupported(f"{asked}: {reasons}")

    def reason(target: Target) -> str | None:
        """Why a worker can't build it now, without what to use instead: that is chosen here."""
        told = policy.refusal(target) or refusal(target)
        if told is None and not online_queues.get(policy.build_queue(target)):
            return _OFFLINE
        return told and told.partition(";")[0]

    fast = [normal(one.runtime, tag) for one in measured]
    for one, target in zip(measured, fast, strict=True):
        if reason(target) is None:
            faster = {other: reason(other) for other in fast[: fast.index(target)]}
            return chosen(target=target, why=_why(one.why, faster))
    able = [target for target in possible if refusal(target) is None] or possible
    online = [target for target in able if online_queues.get(policy.build_queue(target))]
    target = (online or able)[0]
    why = (
        f"first of {', '.join(runtimes)} that an online worker can build for {tag}"
        if online
        else f"no online worker can build for {tag}; waits for one with {target}"
    )
    before = {other: reason(other) for other in candidates[: candidates.index(target)]}
    return chosen(target=target, why=_why(why, before))


_OFFLINE = "no online worker can build it"


def _why(why: str, passed_over: Mapping[Target, str | None]) -> str:
    said = [f"{target.runtime} ({reason})" for target, reason in passed_over.items() if reason]
    return f"{why}; passed over: {', '.join(said)}" if said else why


def warning(asked: str, target: Target) -> str | None:
    """What a user may not expect of the runtime that was chosen for a request; None of a named one.

    A GPU of data centres is likely to serve with Triton.
    """
    runtime, tag = parse(asked)
    if runtime is not None or target.runtime not in UNSUPPORTED or not gpus.serves(tag):
        return None
    return (
        f"{target} isn't for Triton: {UNSUPPORTED[target.runtime]}. If that is what serves on {tag}, ask for "
        f"tensorrt:{tag}"
    )


def named(asked: str) -> Target:
    """The target that a request names with its runtime.

    Raises:
        UnknownGpu, InvalidRequest, TargetUnsupported
    """
    runtime, tag = parse(asked)
    if runtime is None:
        raise InvalidRequest(f"{asked!r} names no runtime", hint="use RUNTIME:TAG")
    reason = policy.refusal(Target(runtime=runtime, gpu=tag))
    if reason:
        raise TargetUnsupported(f"{asked}: {reason}")
    return normal(runtime, tag)


def normal(runtime: Runtime, tag: str) -> Target:
    """Normalise a target: TensorRT-RTX and AOTInductor build per compute capability, TensorRT per product.

    For classic TensorRT, the same compute capability doesn't mean the same engine: a plan contains tactics
    tuned on one product.
    """
    if runtime in (Runtime.TENSORRT_RTX, Runtime.AOTINDUCTOR):
        tag = gpus.compute_capability(tag)
    return Target(runtime=runtime, gpu=tag)
