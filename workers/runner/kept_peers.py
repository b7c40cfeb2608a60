"""A worker's part in timing PyTorch: keeps its figures for the next engine of the same source.

A bench has several engines of one source in one precision, and compiling the source anew for each would take
most of its time. Figures are kept for an hour, for one card, and one of what they depend on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from farm.queue.jobs import Claim
from farm.reports.speed_ups import peers_precision
from farm.specs.precision import Precision
from farm.specs.roles import Role
from farm.stages import JobKind
from workers.runner import toolchain
from workers.runner.app import Context
from workers.runner.hooks import Part
from workers.runner.made import Made

FRESH_S = 3600.0
_PARAMS = ("format", "architecture", "profiles", "fixed_inputs", "hold_out", "preprocess")
_TOOLS = ("torch", "cuda", "triton", "c++")


class Peers(Part):
    """The hook's part in a measurement on a GPU; other jobs have none."""

    def __init__(self, context: Context, claim: Claim) -> None:
        self._file = _file(context, claim)
        self._new: Path | None = None

    def place(self, workdir: Path) -> Mapping[str, Path]:
        """Give the job the figures that are kept, if they are fresh."""
        if self._file is None:
            return {}
        placed = workdir / "kept-peers.json"
        with suppress(OSError):  # there are none: the job takes its own
            if time.time() - self._file.stat().st_mtime < FRESH_S:
                shutil.copy2(self._file, placed)  # with its time
                return {Role.PEERS: placed}
        return {}

    def made(self, made: Made) -> Made:
        """Drop the figures: they are in the job's facts."""
        outputs = {role: path for role, path in made.outputs.items() if role != Role.PEERS}
        self._new = made.outputs.get(Role.PEERS)
        return Made(outputs=outputs, facts=made.facts)

    def kept(self) -> None:
        if self._file is None or self._new is None:
            return
        with suppress(OSError):  # the next measurement takes its own
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._file.with_suffix(".new")
            shutil.copyfile(self._new, beside)
            beside.replace(self._file)
            _forget_old(self._file.parent)


def _file(context: Context, claim: Claim) -> Path | None:
    """Where the figures are kept that this job would take; None if it takes none."""
    if claim.kind != JobKind.MEASURE or context.gpu is None or claim.params["target"] is None:
        return None
    here = toolchain.installed()
    known = {
        "gpu": context.gpu.uuid,
        "inputs": {role: claim.inputs.get(role) for role in _SHARED},
        "params": {name: claim.params.get(name) for name in _PARAMS},
        "precision": peers_precision(Precision(claim.params["precision"])),
        "tf32": claim.params["options"]["tf32"],
        "tools": {name: here.get(name) for name in _TOOLS},
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return context.settings.home / "peers" / f"{digest}.json"


_SHARED = (Role.SOURCE, Role.CALIBRATION, Role.EVALUATION)


def _forget_old(folder: Path) -> None:
    for file in folder.iterdir():
        if time.time() - file.stat().st_mtime > FRESH_S:
            file.unlink()
