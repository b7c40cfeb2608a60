"""Runs TensorRT engines on the GPU that the worker is pinned to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from farm.errors import EngineBuildFailed
from farm.specs.runtime import Runtime
from workers.backends.trt.library import collecting_log, last_errors, load_plugins, load_runtime
from workers.clocks.cuda import Bound, Tensors, captured
from workers.failures.known import Said
from workers.inputs.samples import Arrays
from workers.programs.eager import array_of

if TYPE_CHECKING:
    import tensorrt as types

#: TensorRT's type name → torch's type.
_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class TrtEngine:
    """A TensorRT or TensorRT-RTX engine on the current GPU, with its first profile.

    Parameters:
        plugins: the plugin libraries it was built with.

    Raises:
        EngineBuildFailed: this GPU or this runtime version can't load it.
    """

    def __init__(self, runtime: Runtime, plan: Path, plugins: Sequence[Path] = ()) -> None:
        trt = load_runtime(runtime)
        self._log = collecting_log(trt)
        load_plugins(trt, self._log, plugins)
        # The runtime must outlive its engines.
        self._runtime: types.Runtime = trt.Runtime(self._log)
        engine: types.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            reason = last_errors(self._log) or "it gives no reason"
            raise EngineBuildFailed(
                f"{runtime} {trt.__version__} can't load the engine on this GPU: {reason}",
                hint="build it for the GPU that will run it, with this worker's version",
            ) from Said(reason)
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._types = {name: _TYPES[engine.get_tensor_dtype(name).name] for name in names}
        self._inputs = [n for n in names if modes[n] == trt.TensorIOMode.INPUT]
        self.output_names = [n for n in names if modes[n] != trt.TensorIOMode.INPUT]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs for one batch, by name."""
        inputs = {
            name: torch.from_numpy(np.require(array, requirements=["C", "W"])).cuda()
            for name, array in arrays.items()
        }
        # Where the source takes fp64 or bf16, the engine or the data may have another type.
        inputs = {
            name: tensor.to(self._types[name]) if tensor.is_floating_point() else tensor
            for name, tensor in inputs.items()
        }
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            outputs = self.bind(inputs).enqueue()
            stream.synchronize()
        return {name: array_of(tensor) for name, tensor in outputs.items()}

    def bind(self, inputs: Tensors) -> _Bound:
        """An inference of these tensors on the current stream."""
        # An fp64 model's engine takes fp32: unconverted, the bytes would be read as other numbers.
        given = {
            n: inputs[n].to(_TYPES[self._engine.get_tensor_dtype(n).name]) for n in self._inputs
        }
        # Inputs whose values are sizes are read on the host, for shape inference.
        given = {
            n: tensor.cpu() if self._engine.is_shape_inference_io(n) else tensor
            for n, tensor in given.items()
        }
        return _Bound(self._engine, self._log, given)

    def bind_graph(self, inputs: Tensors) -> Bound:
        """The same inference, replayed as a CUDA graph."""
        return captured(self.bind)(inputs)


class _Bound:
    """A context with its inputs and outputs at fixed addresses."""

    def __init__(self, engine: types.ICudaEngine, log: Any, inputs: Tensors) -> None:
        self._log = log
        self._inputs = inputs  # keep alive while their addresses are set
        self._context: types.IExecutionContext = engine.create_execution_context()
        for name, tensor in inputs.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise self._refused(f"the shape {list(tensor.shape)} of input {name!r}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._outputs = {
            name: torch.empty(
                [int(shape[axis]) for axis in range(len(shape))],
                dtype=_TYPES[engine.get_tensor_dtype(name).name],
                device="cuda",
            )
            for index in range(engine.num_io_tensors)
            if (name := engine.get_tensor_name(index)) not in inputs
            for shape in [self._context.get_tensor_shape(name)]
        }
        for name, tensor in self._outputs.items():
            self._context.set_tensor_address(name, tensor.data_ptr())

    def enqueue(self) -> Tensors:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise self._refused("to run")
        return self._outputs

    def _refused(self, what: str) -> EngineBuildFailed:
        reason = last_errors(self._log) or "it gives no reason"
        refused = EngineBuildFailed(
            f"the engine rejects {what}: {reason}",
            hint="check the profiles' min, opt and max against the model's inputs",
        )
        refused.__cause__ = Said(reason)
        return refused
