"""Tests whether AOTInductor packages made on this machine run: one is made when a worker starts.

A compiler may be missing, or make packages that crash when they are loaded; a GPU's driver may be too old.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm.machine.gpus import Gpu
from farm.settings import Settings
from workers.backends.aotinductor import compiler
from workers.runner.child import Child
from workers.runner.inside import Link
from workers.runner.siblings import Siblings
from workers.sandbox import folder
from workers.sandbox.settings import sandbox_of

_TIME_S = 600.0


def refusal(settings: Settings, gpu: Gpu | None, siblings: Siblings) -> str | None:
    """Why this worker can't build AOTInductor packages; None if it can."""
    if not settings.aotinductor:
        return "FARM_AOTINDUCTOR=false"
    if not compiler.tools():
        return "no usable C++ compiler, or a processor without AVX2"
    with folder.temporary(settings.home, "package-") as at:
        workdir = at / "work"
        workdir.mkdir()
        box = sandbox_of(settings, workdir, (), is_gpu=gpu is not None, timeout_s=_TIME_S)
        argument = {"workdir": str(workdir), "device": "cpu" if gpu is None else "cuda"}
        try:
            with Child(_try, argument, timeout_s=_TIME_S, siblings=siblings, sandbox=box) as child:
                child.wait()
        except FarmError as err:
            return err.detail
    return None


def _try(argument: dict[str, Any], _link: Link) -> dict[str, Any]:
    """In the child: make a package of a tiny program, and run it in a fresh process.

    Raises:
        EngineBuildFailed
    """
    import numpy as np
    import torch

    from workers.backends.aotinductor import build, proof
    from workers.inputs.profiles import resolve_profiles
    from workers.programs.eager import specs
    from workers.programs.lowered import lowered
    from workers.programs.program_interface import plain_program

    os.nice(10)  # jobs come first
    device = argument["device"]
    tiny = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU()).to(device).eval()
    given = torch.zeros(2, 16, device=device)
    program = torch.export.export(tiny, (given,))
    plain_program(program)
    inputs, outputs = specs(program)
    of = build.signature(inputs, outputs, resolve_profiles(inputs, ()), tf32=False)
    package = Path(argument["workdir"]) / "tiny.pt2"
    build.compile_package(build.traced(lowered(program).to(device), [given], of), of, package)
    arrays = {inputs[0].name: np.zeros((2, 16), np.float32)}
    proof.proved(package, device, arrays, package.parent)
    return {}
