"""What a stage says that it has made, taken as a stranger's word: the process that says so has read a
stranger's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import StageFault
from farm.specs import JobKind
from workers.sandbox import folder

#: Roles of outputs by stage: those that it always has, and those that it may have.
_ROLES: Mapping[JobKind, tuple[frozenset[str], frozenset[str]]] = {
    kind: (frozenset(always.split()), frozenset(maybe.split()))
    for kind, always, maybe in (
        (JobKind.PRUNE, "source", ""),
        (JobKind.EXPORT, "onnx", ""),
        (JobKind.CAST, "typed", ""),
        (JobKind.CALIBRATE, "", "typed typed_fp16 typed_half"),
        (JobKind.BUILD, "engine layers", "timing_cache"),
        (JobKind.MEASURE, "report", ""),
    )
}
_HINT = (
    "no stage of the farm does that: if the worker's packages are whole (pip check), take the model for "
    "hostile"
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage has made."""

    outputs: Mapping[str, Path]  #: role → a regular file in the work folder, of one name
    facts: Mapping[str, Any]


def made_of(said: Any, kind: JobKind, workdir: Path) -> Made:
    """What a stage's process has sent, checked. To be called when its processes have ended.

    Raises:
        StageFault: no stage would say so.
    """
    match said:
        case {"outputs": dict(outputs), "facts": dict(facts)}:
            pass
        case _:
            raise StageFault("the stage's process sent no result", hint=_HINT)
    always, maybe = _ROLES[kind]
    if not always <= outputs.keys() <= always | maybe or not outputs:
        raise StageFault(f"the stage's process sent other outputs than a {kind} has", hint=_HINT)
    if len(set(map(str, outputs.values()))) != len(outputs):
        raise StageFault("the stage's process sent one output twice", hint=_HINT)
    if "timing_cache" in outputs and not _is_use(facts.get("timing_cache")):
        raise StageFault("the stage's process sent a timing cache without its facts", hint=_HINT)
    files = {role: _file(role, path, workdir) for role, path in outputs.items()}
    return Made(outputs=files, facts=facts)


def _is_use(facts: Any) -> bool:
    match facts:
        case {"hit": bool(), "entries_after": int() | None}:
            return True
    return False


def _file(role: str, path: Any, workdir: Path) -> Path:
    try:
        return folder.checked(str(path), workdir)
    except folder.NotAnOutput as err:
        raise StageFault(f"the stage's process sent {err} as its {role}", hint=_HINT) from err
