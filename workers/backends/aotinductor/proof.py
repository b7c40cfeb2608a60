"""Runs a package in a process of its own, as its users do: ``python -m workers.backends.aotinductor.proof``.

A package that crashes when it is loaded, for example for its C++ library, ends that process and not the job.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._autograd import DeviceType

from farm import installed
from farm.errors import EngineBuildFailed, FarmError
from farm.processes import die_with_parent
from workers import signals
from workers.backends.aotinductor.engine import AotiEngine
from workers.inputs.samples import Arrays

_NAME = "workers.backends.aotinductor.proof"
_TIME_S = 900.0
_LAST_LINES = 400
_LAST_SAID = 4000


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a package did in a process of its own."""

    outputs: Mapping[str, NDArray[np.generic]]
    kernels: Mapping[str, float]  #: on a GPU, in order, and the microseconds of each


def proved(
    package: Path, device: str, arrays: Mapping[str, NDArray[np.generic]], folder: Path
) -> Ran:
    """Load and run a package in a fresh process.

    Parameters:
        folder: for the files that tell that process what to run, and what it answers.

    Raises:
        EngineBuildFailed: it crashed, or refused to run.
    """
    np.savez(folder / "proof.npz", **arrays)  # type: ignore[arg-type]
    said = folder / "proof.json"
    command = installed.command(_NAME, str(package), device, str(folder / "proof.npz"), str(said))
    try:
        done = subprocess.run(
            command,
            env=installed.environment(),
            capture_output=True,
            text=True,
            timeout=_TIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineBuildFailed(
            f"the package didn't run within {_TIME_S:.0f} s in a process of its own"
        ) from None
    if done.returncode or not said.exists():
        raise EngineBuildFailed(f"the package doesn't run in a process of its own: {_why(done)}")
    found = json.loads(said.read_text())
    if "refused" in found:
        # Only there does a package say which of its calls failed, and why.
        print(done.stderr.strip()[-_LAST_SAID:], flush=True)
        raise EngineBuildFailed(f"the package doesn't run: {found['refused']}")
    with np.load(_outputs(said), allow_pickle=False) as archive:
        outputs = dict(archive)
    return Ran(outputs=outputs, kernels=dict(found["kernels"]))


def _outputs(said: Path) -> Path:
    return said.with_suffix(".outputs.npz")


def _why(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return (
            f"it ended with {signals.name_of(-done.returncode)}; a compiler whose C++ library isn't "
            "the one that torch loads makes such packages (set CXX to another)"
        )
    return done.stderr.strip()[-_LAST_LINES:] or f"exit status {done.returncode}"


def main(package: str, device: str, data: str, said: str) -> None:
    """Be that process."""
    with np.load(data, allow_pickle=False) as archive:
        arrays = dict(archive)
    try:
        outputs, found = _run(Path(package), device, arrays)
        np.savez(_outputs(Path(said)), **outputs)  # type: ignore[arg-type]
    except FarmError as err:
        found = {"refused": err.detail}
    Path(said).write_text(json.dumps(found))


def _run(
    package: Path, device: str, arrays: Mapping[str, NDArray[np.generic]]
) -> tuple[Arrays, dict[str, object]]:
    engine = AotiEngine(package, device)
    outputs = engine.run(arrays)
    return outputs, {"kernels": _kernels(engine, arrays) if device == "cuda" else {}}


def _kernels(engine: AotiEngine, arrays: Mapping[str, NDArray[np.generic]]) -> Mapping[str, float]:
    """The kernels of one run, by name, in the order of their first one."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    inputs = {name: torch.from_numpy(array.copy()).cuda() for name, array in arrays.items()}
    bound = engine.bind(inputs)
    bound.enqueue()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as seen:
        bound.enqueue()
        torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for event in seen.events():
        if event.device_type == DeviceType.CUDA:
            spent[event.name] = spent.get(event.name, 0.0) + float(event.device_time)
    return spent


if __name__ == "__main__":
    die_with_parent()
    main(*sys.argv[1:])
