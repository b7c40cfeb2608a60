"""Engines loaded where they can run: on this worker's CPU, or the GPU that it is pinned to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from farm.specs.gpus import CPU
from farm.specs.runtime import Runtime, Target
from workers.backends.aotinductor.engine import AotiEngine
from workers.backends.ort.cpu import OrtModel
from workers.backends.torchscript import TorchScriptModel
from workers.graphs import files
from workers.inputs.samples import Runnable
from workers.measure import gpu


def load(
    target: Target, engine: Path, workdir: Path, plugins: Sequence[Path] = ()
) -> Runnable | gpu.Loaded:
    """Load an engine. On a GPU it must be the first use of CUDA in this process.

    Parameters:
        workdir: where an engine of several files is unpacked.
        plugins: the plugin libraries it was built with.

    Raises:
        EngineBuildFailed, InvalidModel: this worker can't load it.
    """
    if target.runtime is Runtime.TORCHSCRIPT:
        return TorchScriptModel(engine)
    if target.runtime is Runtime.ONNXRUNTIME:
        engine = files.model_file(engine, workdir)
    if target.gpu != CPU:
        return gpu.load(target.runtime, engine, plugins)
    if target.runtime is Runtime.AOTINDUCTOR:
        return AotiEngine(engine, "cpu")
    return OrtModel(engine, is_engine=True)
