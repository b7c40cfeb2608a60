"""Infer: an engine's outputs on the inputs that somebody sent."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from farm.errors import InvalidData
from farm.formats import array_files
from farm.formats.archives import Malformed
from farm.reports.records import Tensor
from farm.specs.inference import MAX_BYTES
from farm.specs.roles import Role
from farm.specs.samples import POSITIONAL
from farm.stages import InferFacts, InferParams
from workers.backends.ort.cpu import cpu_threads
from workers.inputs.samples import Arrays, Runnable, read_samples
from workers.measure import engines, gpu
from workers.stages.base import Stage, StageResult


def run(stage: Stage) -> StageResult:
    """Write ``outputs``: the arrays that one run of the engine gives, by name, as an ``.npz`` file.

    Raises:
        InvalidData: the inputs can't be read, or the outputs are larger than allowed.
        InvalidModel: the engine can't run on these inputs.
    """
    params = stage.params
    assert isinstance(params, InferParams)
    torch.set_num_threads(cpu_threads())
    arrays = _inputs(stage.inputs[Role.INPUTS], params)
    stage.progress("load", None)
    loaded = engines.load(
        params.target, stage.inputs[Role.ENGINE], stage.workdir, stage.plugins(params.options)
    )
    engine: Runnable = loaded.engine if isinstance(loaded, gpu.Loaded) else loaded
    stage.progress("run", None)
    began = time.perf_counter()
    made = {name: np.asarray(array) for name, array in engine.run(arrays).items()}
    run_ms = 1000 * (time.perf_counter() - began)
    path = stage.workdir / "outputs.npz"
    _write(made, path)
    told = [Tensor(name=n, dtype=a.dtype.name, shape=list(a.shape)) for n, a in made.items()]
    return StageResult(
        outputs={Role.OUTPUTS: path}, facts=InferFacts(outputs=told, run_ms=round(run_ms, 3))
    )


def _inputs(path: Path, params: InferParams) -> Arrays:
    """The inputs, whose size is checked here too: this process is what they would fill."""
    try:
        size = sum(map(array_files.bytes_of, array_files.heads(path).values()))
    except Malformed as err:
        raise InvalidData(f"the inputs can't be read: {err}") from err
    if size > MAX_BYTES:
        raise InvalidData(
            f"the inputs take {size} bytes in memory, and at most {MAX_BYTES} are run"
        )
    arrays = read_samples(path)
    if list(arrays) == [POSITIONAL] and params.only_input:
        return {params.only_input: arrays[POSITIONAL]}
    return arrays


def _write(arrays: Arrays, path: Path) -> None:
    """Save arrays under any names: those of outputs may be ``file`` or have slashes."""
    size = sum(array.nbytes for array in arrays.values())
    if size > MAX_BYTES:
        raise InvalidData(
            f"the outputs take {size} bytes, and at most {MAX_BYTES} are sent",
            hint="send a smaller batch; to serve the engine, pull it",
        )
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
