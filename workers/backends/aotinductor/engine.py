"""Runs AOTInductor packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import _inductor

from farm.errors import EngineBuildFailed, InvalidModel
from workers.backends.aotinductor.build import FARM, Signature, choose_kernels, use_instruction_set
from workers.clocks.cuda import Bound, Tensors, captured
from workers.graphs.check import brief
from workers.inputs.samples import Arrays
from workers.programs.eager import array_of, as_taken, given_to


class AotiEngine:
    """A package, on the current GPU or on the CPU. Its code is native: it runs as its job may.

    Parameters:
        device: ``cuda`` or ``cpu``, which it was built for.

    Raises:
        EngineBuildFailed: it can't be loaded here.
    """

    def __init__(self, package: Path, device: str) -> None:
        use_instruction_set()
        try:
            # Single-threaded: its locks query events, which invalidates a capture.
            self._model = _inductor.aoti_load_package(str(package), run_single_threaded=True)
            of = Signature.model_validate_json(self._model.get_metadata()[FARM])
        except Exception as err:  # bare RuntimeErrors, and whatever its metadata lack
            raise EngineBuildFailed(
                f"torch {torch.__version__} can't load this package: {brief(err)}"
            ) from err
        choose_kernels(tf32=of.tf32)
        self._device = device
        self._of = of
        self.input_names = [spec.name for spec in of.inputs]
        self.output_names = [spec.name for spec in of.outputs]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs for one batch, by name.

        Raises:
            InvalidModel: it wasn't built for the shapes of this batch.
        """
        given = given_to(self._of.inputs, arrays)
        return {name: array_of(one) for name, one in self._called(given).items()}

    def bind(self, inputs: Tensors) -> _Bound:
        """An inference of these tensors on the current stream."""
        given = [as_taken(inputs[spec.name], spec) for spec in self._of.inputs]
        self._check(given)
        return _Bound(self, given)

    def bind_graph(self, inputs: Tensors) -> Bound:
        """The same inference, replayed as a CUDA graph."""
        return captured(self.bind)(inputs)

    def called(self, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs for tensors of the right shapes, in call order, on the device."""
        with torch.inference_mode():
            return dict(zip(self.output_names, self._model(*given), strict=True))

    def _called(self, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        self._check(given)
        placed = [one.to(self._device).contiguous() for one in given]
        try:
            return self.called(placed)
        except RuntimeError as err:
            shapes = {n: list(t.shape) for n, t in zip(self.input_names, given, strict=True)}
            raise InvalidModel(
                f"the engine can't run with input shapes {shapes}: {brief(err)}"
            ) from err

    def _check(self, given: Sequence[torch.Tensor]) -> None:
        """A package computes with any shape, and reads what isn't there."""
        for spec, tensor in zip(self._of.inputs, given, strict=True):
            low, high = self._of.smallest[spec.name], self._of.largest[spec.name]
            shape = list(tensor.shape)
            fits = len(shape) == len(low) and all(
                least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
            )
            if not fits or str(tensor.dtype) != f"torch.{spec.dtype}":
                raise InvalidModel(
                    f"the engine takes {spec.name!r} as {spec.dtype} of {list(low)} to {list(high)}, "
                    f"and not as {str(tensor.dtype).removeprefix('torch.')} of {shape}"
                )


class _Bound:
    def __init__(self, engine: AotiEngine, given: Sequence[torch.Tensor]) -> None:
        self._engine = engine
        self._given = given

    def enqueue(self) -> Tensors:
        return self._engine.called(self._given)
