"""Runs a TensorFlow SavedModel by input name, and converts it to ONNX, both in a separate process.

TensorFlow is never imported here: it takes seconds, and its threads don't survive a fork.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.errors import InvalidModel
from farm.specs import durations
from workers.graphs import walk
from workers.inputs.samples import Arrays
from workers.sources.savedmodel import files

#: The newest opset that tf2onnx 1.17 writes.
OPSET = 18
#: Limit for one batch or one conversion.
TIME_LIMIT_S = 1800.0
_LOG_LINES = 5
_CONVERT = "convert it to ONNX yourself (python -m tf2onnx.convert), and submit that"


class SavedModelSource:
    """Runs a SavedModel's serving signature on numpy arrays, by input name.

    Parameters:
        pack: the folder as an uncompressed tar.
        folder: an existing folder for its files.

    Raises:
        InvalidModel: it can't be loaded, may not be loaded, or TensorFlow isn't installed.
    """

    def __init__(self, pack: Path, folder: Path) -> None:
        _require_tensorflow()
        self._folder = folder
        self._log = folder / "tensorflow.log"
        self._process = _start(files.unpack(pack, folder), self._log)
        weakref.finalize(self, _end, self._process)
        described = self._answer("TensorFlow can't load this SavedModel")
        self.input_names: list[str] = described["inputs"]
        # In the graph, an output can't have the same name as an input.
        self.output_names = [
            f"{name}_out" if name in self.input_names else name for name in described["outputs"]
        ]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Return the outputs for one batch, by their names in the ONNX graph.

        Raises:
            InvalidModel: it can't run at these shapes.
        """
        given, made = self._folder / "batch.npz", self._folder / "made.npz"
        np.savez(given, *(arrays[name] for name in self.input_names))
        shapes = {name: list(arrays[name].shape) for name in self.input_names}
        self._ask(
            f"TensorFlow can't run the model with input shapes {shapes}",
            run=str(given),
            outputs=str(made),
        )
        with np.load(made, allow_pickle=False) as found:
            return {name: found[f"arr_{index}"] for index, name in enumerate(self.output_names)}

    def to_onnx(self) -> onnx.ModelProto:
        """Convert it; dynamic axes are named ``batch``, or after their input.

        Raises:
            InvalidModel: has tf2onnx's reason.
        """
        file = self._folder / "converted.onnx"
        self._ask("tf2onnx can't convert this SavedModel", convert=str(file), opset=OPSET)
        model = onnx.load(str(file))
        file.unlink()
        _rename(model, self.input_names, self.output_names)
        return model

    def _ask(self, failure: str, **request: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: reading the answer reports it
        return self._answer(failure)

    def _answer(self, failure: str) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIME_LIMIT_S)
        line = self._process.stdout.readline() if ready else ""
        answer = json.loads(line) if line else {"error": self._death(has_time=bool(ready))}
        if "error" in answer:
            why = " ".join(answer["error"].split())[:600]
            raise InvalidModel(f"{failure}: {why}", hint=_CONVERT)
        return answer["result"]

    def _death(self, *, has_time: bool) -> str:
        _end(self._process)
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        what = (
            "its process died" if has_time else f"it took more than {durations.told(TIME_LIMIT_S)}"
        )
        return f"{what}; the end of its log: {' | '.join(lines)}"


def _require_tensorflow() -> None:
    missing = [name for name in ("tensorflow", "tf2onnx") if find_spec(name) is None]
    if missing:
        raise InvalidModel(
            f"a SavedModel needs {' and '.join(missing)}, which this worker lacks",
            hint="on the workers: pip install 'engine-farm[tensorflow]'; or convert the model to ONNX "
            "yourself (python -m tf2onnx.convert), and submit that",
        )


def _start(model: Path, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as errors:
        return subprocess.Popen(
            # -P: don't import from the current folder.
            [sys.executable, "-P", "-m", "workers.sources.savedmodel.process", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _rename(model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Name the graph's inputs, outputs and axes as in the signature."""
    graph = model.graph
    names = {f"input_{index}": name for index, name in enumerate(inputs)}
    unused = names.keys() - {value.name for value in graph.input}
    if unused:
        raise InvalidModel(
            f"its signature takes {sorted(names[name] for name in unused)} but doesn't use it",
            hint="save it with a signature of only the inputs it uses",
        )
    names |= {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    for node in walk.all_nodes(graph):
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")  # inferred again with these axes
    del graph.value_info[:]
