"""TensorFlow in a separate process: ``python -m workers.sources.savedmodel.process FOLDER``.

Loads the SavedModel, prints its signature, then executes the command on each line of stdin: run a batch,
or convert to ONNX. Each answer is one line of JSON. Exits when stdin closes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from farm.processes import die_with_parent

_SERVING = "serving_default"


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries' output goes to the log
    for answer in _answers(folder):
        print(json.dumps(answer), file=answers)


def _answers(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        model = Signature(folder)
    except Exception as err:  # TensorFlow raises dozens of error types, and tf2onnx more
        yield _error(err)
        return
    yield {"result": model.described()}
    for line in sys.stdin:
        try:
            model.do(**json.loads(line))
            yield {"result": None}
        except Exception as err:
            yield _error(err)


def _error(err: Exception) -> dict[str, Any]:
    return {"error": f"{type(err).__name__}: {str(err).strip()[:2000]}"}


class Signature:
    """A SavedModel's serving signature, or its only one."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        self._model = tf.saved_model.load(str(folder))  # keeps its variables alive
        found = self._model.signatures
        name = _SERVING if _SERVING in found or len(found) != 1 else next(iter(found))
        if name not in found:
            raise ValueError(f"it has no signature {_SERVING!r}, only {sorted(found) or 'none'}")
        self._call = found[name]
        self._inputs = dict(sorted(self._call.structured_input_signature[1].items()))
        self._outputs = sorted(self._call.structured_outputs)

    def described(self) -> dict[str, Any]:
        return {"inputs": list(self._inputs), "outputs": self._outputs}

    def do(self, *, run: str | None = None, convert: str | None = None, **more: Any) -> None:
        if run is not None:
            self._run(run, more["outputs"])
        if convert is not None:
            self._convert(convert, more["opset"])

    def _run(self, arrays: str, outputs: str) -> None:
        with np.load(arrays, allow_pickle=False) as given:
            tensors = [
                self._tf.constant(given[f"arr_{index}"], spec.dtype)
                for index, spec in enumerate(self._inputs.values())
            ]
        np.savez(outputs, *(tensor.numpy() for tensor in self._flat(*tensors)))

    def _convert(self, target: str, opset: int) -> None:
        import tf2onnx

        specs = [
            self._tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{index}")
            for index, spec in enumerate(self._inputs.values())
        ]
        function = self._tf.function(self._flat, input_signature=specs)
        tf2onnx.convert.from_function(
            function, input_signature=specs, opset=opset, output_path=target
        )

    def _flat(self, *tensors: Any) -> list[Any]:
        made = self._call(**dict(zip(self._inputs, tensors, strict=True)))
        return [made[name] for name in self._outputs]


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
