"""A stage's outputs, checked as untrusted: the process that reports them has read an untrusted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from farm.errors import ResultRefused
from farm.reports import records
from farm.reports.extent import TooMuch
from farm.reports.histograms import MAX_BYTES as MAX_HISTOGRAMS_BYTES
from farm.reports.histograms import Histograms
from farm.reports.layers import MAX_LAYER_REPORT_BYTES, LayerReport
from farm.specs.inference import MAX_BYTES as MAX_OUTPUT_BYTES
from farm.specs.roles import Role
from farm.stages import STAGES, JobKind, check_facts
from workers.peers.files import MAX_BYTES as MAX_PEERS_BYTES
from workers.sandbox import folder

#: The outputs that the API itself reads: what they hold, their most bytes, and their name.
_REPORTS: Mapping[str, tuple[type[BaseModel], int, str]] = {
    Role.LAYERS: (LayerReport, MAX_LAYER_REPORT_BYTES, "a layer report"),
    Role.HISTOGRAMS: (Histograms, MAX_HISTOGRAMS_BYTES, "histograms"),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A stage's outputs and facts."""

    outputs: Mapping[str, Path]  #: role → a regular file in the work folder, with a single link
    facts: Mapping[str, Any]


def made_of(said: Any, kind: JobKind, workdir: Path) -> Made:
    """Check what a stage's process has sent. Call it once the job's processes have ended.

    Raises:
        ResultRefused: no stage sends this.
    """
    match said:
        case {"outputs": dict(outputs), "facts": dict(facts)}:
            pass
        case _:
            raise ResultRefused("the stage's process sent no result")
    always, maybe = set(STAGES[kind].makes), set(STAGES[kind].may_make)
    if not always <= outputs.keys() <= always | maybe or not outputs:
        raise ResultRefused(f"the stage's process sent outputs that no {kind} job has")
    if len(set(map(str, outputs.values()))) != len(outputs):
        raise ResultRefused("the stage's process sent one output twice")
    if Role.TIMING_CACHE in outputs and not _is_use(facts.get("timing_cache")):
        raise ResultRefused("the stage's process sent a timing cache without its facts")
    try:
        check_facts(kind, facts)
    except TooMuch as err:
        raise ResultRefused(
            f"the stage's process sent facts that no {kind} job has: {err}"
        ) from None
    files = {role: _file(role, path, workdir) for role, path in outputs.items()}
    if Role.PEERS in files and files[Role.PEERS].stat().st_size > MAX_PEERS_BYTES:
        raise ResultRefused("the stage's process sent more than PyTorch's figures")
    if Role.OUTPUTS in files and files[Role.OUTPUTS].stat().st_size > 2 * MAX_OUTPUT_BYTES:
        raise ResultRefused("the stage's process sent larger outputs than are allowed")
    for role in _REPORTS.keys() & files.keys():
        _check_report(role, files[role])
    return Made(outputs=files, facts=facts)


def _check_report(role: str, path: Path) -> None:
    report, most, name = _REPORTS[role]
    size = path.stat().st_size
    if size > most:
        raise ResultRefused(f"the stage's process sent {name} of {size} bytes")
    try:
        report.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as err:
        told = records.first_of(err)
        raise ResultRefused(f"the stage's process sent invalid {name}: {told}") from None


def _is_use(facts: Any) -> bool:
    match facts:
        case {"hit": bool(), "entries_after": int() | None}:
            return True
    return False


def _file(role: str, path: Any, workdir: Path) -> Path:
    try:
        return folder.checked(str(path), workdir)
    except folder.NotAnOutput as err:
        raise ResultRefused(f"the stage's process sent {err} as its {role}") from err
