"""Runs engines on whatever processor this is, and compares: ``python tests/emulated.py FOLDER``.

For each NAME.onnx in the folder there is a NAME.npz with its inputs by name and what comes of them,
``expected``. Prints what differs, by session level; the exit status says whether anything did. Imports
nothing but NumPy and ONNX Runtime, since an emulated processor takes minutes to import the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
#: Of float results, whose scale is applied to exact sums.
RELATIVE = 1e-5


def differences(folder: Path) -> list[str]:
    """What differs from what is expected: ``NAME LEVEL: by how much``."""
    found = []
    for engine in sorted(folder.glob("*.onnx")):
        with np.load(engine.with_suffix(".npz")) as arrays:
            feeds = dict(arrays)
        expected = feeds.pop("expected").astype(np.float64)
        for level in LEVELS:
            actual = run(engine, feeds, level).astype(np.float64)
            largest = float(np.abs(actual - expected).max())
            if largest > RELATIVE * float(np.abs(expected).max()):
                found.append(f"{engine.stem} {level}: {largest:g}")
    return found


def run(engine: Path, feeds: dict[str, np.ndarray], level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


if __name__ == "__main__":
    wrong = differences(Path(sys.argv[1]))
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
