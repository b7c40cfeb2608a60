"""Which of a model's engines can run where a pull wants them: on a machine, in a release of Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.errors import NotFound
from farm.schemas.engines import EngineView
from farm.specs import machines, triton
from farm.specs.gpus import CPU
from farm.specs.machines import ANY, Machine


@dataclass(frozen=True, kw_only=True)
class Where:
    """What is known of the place where an engine is to run; by default nothing, so any will do."""

    machine: Machine = ANY
    triton: str | None = None  #: the release that is to load it


def misfits(engines: Sequence[EngineView], where: Where) -> Mapping[str, str]:
    """The engines that can't run there, by id, and why.

    Raises:
        InvalidRequest: the farm doesn't know this release of Triton.
    """
    known = None if where.triton is None else triton.release(where.triton)
    told = {}
    for one in engines:
        why = machines.misfit(one, where.machine)
        if why is None and known is not None:
            why = triton.misfit(known, one, gpu=one.gpu)
        if why is not None:
            told[one.id] = why
    return told


def nothing(
    engines: Sequence[EngineView], misfits: Mapping[str, str], where: Where, tag: str
) -> NotFound:
    """The error for a pull of whose engines none can run there."""
    whys = dict.fromkeys(
        f"{one.precision} by {one.runtime} ({one.gpu}): {misfits[one.id]}" for one in engines
    )
    first = engines[0]
    by_machine = any(machines.misfit(one, where.machine) for one in engines)
    there = " and ".join(
        filter(None, ("runs on the machine" * by_machine, where.triton and _loads(where.triton)))
    )
    return NotFound(
        f"version {first.version} of {first.model} has no engine for {tag} that {there}; "
        f"{'; '.join(whys)}",
        hint=_for_machine(first.model, tag) if by_machine else _for_triton(where.triton, tag),
    )


def _loads(release: str) -> str:
    return f"Triton {release} loads"


def _for_machine(model: str, tag: str) -> str:
    return (
        "install that there, or build the model again with what the machine has; to pull it for another "
        f"machine, name its GPU and no --has: farm pull {model} --gpu {tag}"
    )


def _for_triton(release: str | None, tag: str) -> str:
    if release is None or tag == CPU:
        return "build it: --gpu onnxruntime:cpu"
    needs = f"a worker with TensorRT {triton.release(release).tensorrt}"
    return f"build it with {needs}: --gpu tensorrt:{tag}"
