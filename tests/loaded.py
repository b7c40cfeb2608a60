"""Runs what the farm says about loading an engine, in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]
_INPUTS = re.compile(r"^inputs = \{.*?\}$", re.MULTILINE | re.DOTALL)


def run(load: str, folder: Path, *, on_gpu: bool = False) -> Arrays:
    """The outputs of the text as it stands, with the engine in this folder."""
    return _ran(load, folder, on_gpu=on_gpu)


def run_with(
    load: str, arrays: Mapping[str, NDArray[np.generic]], folder: Path, *, on_gpu: bool = False
) -> Arrays:
    """The outputs of the text for these inputs instead of its zeros."""
    given = folder / "given.npz"
    np.savez(given, **arrays)
    made = "array"
    if "import torch" in load:
        made = "torch.from_numpy(array)" + (".cuda()" if on_gpu else "")
    theirs = f"inputs = {{name: {made} for name, array in numpy.load({str(given)!r}).items()}}"
    code, count = _INPUTS.subn(lambda _: theirs, load)
    assert count == 1, load
    return _ran(f"import numpy\n{code}", folder, on_gpu=on_gpu)


def _ran(code: str, folder: Path, *, on_gpu: bool) -> Arrays:
    results = folder / "outputs.npz"
    plain = "one.cpu().numpy()" if on_gpu and "import torch" in code else "numpy.asarray(one)"
    save = f"numpy.savez({str(results)!r}, **{{name: {plain} for name, one in outputs.items()}})"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport numpy\n{save}\n"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(results) as found:
        return dict(found)
