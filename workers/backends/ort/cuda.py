"""Builds and runs engines for ONNX Runtime's CUDA provider."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from farm.errors import EngineBuildFailed
from workers.backends.ort.cpu import VERSION, BuiltGraph, brief, session_options, writing_options
from workers.backends.ort.provider import kept_options
from workers.clocks.cuda import Tensors
from workers.inputs.samples import Arrays

_CUDA = "CUDAExecutionProvider"
_INSTALL = (
    "install onnxruntime-gpu and matching CUDA libraries on the worker: "
    "pip install 'engine-farm[worker,gpu]'"
)

#: torch type → ONNX's number and ONNX Runtime's name.
_TYPES: dict[torch.dtype, tuple[int, str]] = {
    torch.float32: (TensorProto.FLOAT, "tensor(float)"),
    torch.float16: (TensorProto.FLOAT16, "tensor(float16)"),
    torch.bfloat16: (TensorProto.BFLOAT16, "tensor(bfloat16)"),
    torch.float64: (TensorProto.DOUBLE, "tensor(double)"),
    torch.int64: (TensorProto.INT64, "tensor(int64)"),
    torch.int32: (TensorProto.INT32, "tensor(int32)"),
    torch.int8: (TensorProto.INT8, "tensor(int8)"),
    torch.uint8: (TensorProto.UINT8, "tensor(uint8)"),
    torch.bool: (TensorProto.BOOL, "tensor(bool)"),
}


def build_engine(typed: Path, engine: Path, *, weights_beside: bool = False) -> BuiltGraph:
    """Write the graph as ONNX Runtime optimises it for its CUDA provider.

    Parameters:
        weights_beside: store large weights in a file next to the engine, for models over the file limit.

    Raises:
        EngineBuildFailed: has the runtime's reason.
    """
    start = time.monotonic()
    options = writing_options(engine, weights_beside=weights_beside)
    _session(typed, options, {})
    return BuiltGraph(build_s=time.monotonic() - start, runtime_version=VERSION)


class OrtCudaEngine:
    """An engine on the current GPU.

    Parameters:
        options: of the provider; by default those kept in the file.

    Raises:
        EngineBuildFailed: it can't be loaded, or would run on the CPU.
    """

    def __init__(self, model: Path, options: Mapping[str, str] | None = None) -> None:
        self._model = model
        self._provider = kept_options(model) if options is None else options
        self._session = _session(model, session_options("all"), self._provider)
        self.output_names = [value.name for value in self._session.get_outputs()]
        self._sessions: dict[tuple[int, bool], onnxruntime.InferenceSession] = {}
        self._graphs = 0

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs for one batch, by name.

        Raises:
            EngineBuildFailed: the engine can't run it.
        """
        try:
            outputs = self._session.run(self.output_names, dict(arrays))
        except Exception as err:  # pybind classes of ONNX Runtime with no common public base
            raise _refused(arrays, err) from err
        return dict(zip(self.output_names, outputs, strict=True))

    def bind(self, inputs: Tensors) -> _Bound:
        """An inference of these tensors on the current stream."""
        return _Bound(self._on_stream(cuda_graph=False), inputs)

    def bind_graph(self, inputs: Tensors) -> _Bound:
        """The same inference, replayed as a CUDA graph.

        Raises:
            EngineBuildFailed: part of the graph doesn't run on the GPU.
        """
        self._graphs += 1
        return _Bound(self._on_stream(cuda_graph=True), inputs, graph=self._graphs)

    @property
    def on_cpu(self) -> list[str]:
        """The operators that the CUDA provider left to the CPU. Those on shapes belong there."""
        return [
            node.op_type
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name != _CUDA
            for node in part.get_nodes()
        ]

    def _on_stream(self, *, cuda_graph: bool) -> onnxruntime.InferenceSession:
        # A provider gets its stream when created: one session per stream and way to run.
        stream = torch.cuda.current_stream().cuda_stream
        if (stream, cuda_graph) not in self._sessions:
            provider = {**self._provider, "user_compute_stream": str(stream)}
            if cuda_graph:
                provider["enable_cuda_graph"] = "1"
            session = _session(self._model, session_options("all"), provider)
            self._sessions[stream, cuda_graph] = session
        return self._sessions[stream, cuda_graph]


class _Bound:
    """Inputs and outputs at fixed addresses on the GPU."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Tensors, graph: int = 0
    ) -> None:
        self._session = session
        self._inputs = inputs  # keep alive while their addresses are bound
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        # The caller waits for its own events.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if graph:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        for name, tensor in inputs.items():
            self._binding.bind_input(*_place(name, tensor))
        self._outputs = self._allocated(inputs)
        for name, tensor in self._outputs.items():
            self._binding.bind_output(*_place(name, tensor))

    def enqueue(self) -> Tensors:
        self._session.run_with_iobinding(self._binding, self._options)
        return self._outputs

    def _allocated(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Allocate the outputs; a run determines their shapes."""
        probe = self._session.io_binding()
        for name, tensor in inputs.items():
            probe.bind_input(*_place(name, tensor))
        kinds = {value.name: value.type for value in self._session.get_outputs()}
        for name in kinds:
            probe.bind_output(name, "cuda", 0)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")  # a graph needs the final addresses
        self._session.run_with_iobinding(probe, options)
        dtypes = {word: dtype for dtype, (_, word) in _TYPES.items()}
        return {
            name: torch.empty(value.shape(), dtype=dtypes[kinds[name]], device="cuda")
            for name, value in zip(kinds, probe.get_outputs(), strict=True)
        }


def _place(name: str, tensor: torch.Tensor) -> tuple[Any, ...]:
    return name, "cuda", 0, _TYPES[tensor.dtype][0], list(tensor.shape), tensor.data_ptr()


def _refused(inputs: Mapping[str, Any], err: Exception) -> EngineBuildFailed:
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    return EngineBuildFailed(f"the engine can't run with input shapes {shapes}: {brief(err)}")


def _session(
    model: Path, options: onnxruntime.SessionOptions, provider: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    onnxruntime.preload_dlls()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(model),
            options,
            providers=[(_CUDA, {"device_id": "0", **provider}), "CPUExecutionProvider"],
        )
    except Exception as err:  # pybind classes of ONNX Runtime with no common public base
        raise EngineBuildFailed(
            f"ONNX Runtime {VERSION} can't load this graph on the GPU: {brief(err)}"
        ) from err
    if _CUDA not in session.get_providers():
        # Otherwise it would silently run on the CPU.
        raise EngineBuildFailed(
            f"ONNX Runtime {VERSION} has no working CUDA provider on this worker", hint=_INSTALL
        )
    return session
