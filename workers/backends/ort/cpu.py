"""ONNX Runtime on the CPU: sessions for checks and measurements, and engines for ``cpu``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from farm.errors import EngineBuildFailed, InvalidModel
from workers.inputs.samples import Arrays

VERSION = onnxruntime.__version__

Optimisation = Literal["none", "extended", "all"]
Provider = str | tuple[str, dict[str, str]]  #: its name, and options
_ON_CPU = "CPUExecutionProvider"
_ON_GPU = "CUDAExecutionProvider"
_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_LOG_ERRORS_ONLY = 3
_LOG_NO_ERRORS = 4
#: ``[ONNXRuntimeError] : 1 : FAIL : ``, or the text before the reason when loading fails.
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:")
_SOURCE = re.compile(
    r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*(?:\([^()]*\)[^()]*)*\)(?: const)?(?: \[with [^\]]*\])? "
)


def fastest_providers() -> list[Provider]:
    """A GPU where ONNX Runtime can use one, in full fp32; else the CPU."""
    if _ON_GPU not in onnxruntime.get_available_providers():
        return [_ON_CPU]
    # TensorFloat-32 keeps ten bits of the mantissa.
    return [(_ON_GPU, {"use_tf32": "0"}), _ON_CPU]


def cpu_threads() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0))


class OrtModel:
    """An ONNX file, or a model's bytes, in an ONNX Runtime session on the CPU.

    Parameters:
        is_engine: run it as its users' sessions do; any other graph's Q/DQ are computed in floats, as
            written.
        quiet: don't log errors: they are expected, and raised.
        providers: what runs the operators; the CPU unless told otherwise.

    Raises:
        InvalidModel: the runtime can't load the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimisation: Optimisation = "all",
        is_engine: bool = False,
        quiet: bool = False,
        providers: Sequence[Provider] = (_ON_CPU,),
    ) -> None:
        options = session_options(optimisation)
        if quiet:
            options.log_severity_level = _LOG_NO_ERRORS
        if not is_engine:
            # Otherwise 16-bit sums may saturate, and the session rounds values that are floats in the graph.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=list(providers),
            )
        except Exception as err:  # pybind classes of ONNX Runtime with no common public base
            raise InvalidModel(
                f"ONNX Runtime {VERSION} can't load the model: {brief(err)}"
            ) from err
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs for one batch, by name.

        Raises:
            InvalidModel: the model can't run at this batch's shapes.
        """
        try:
            # Indexing an array yields a NumPy scalar, and ONNX Runtime requires an array.
            given = {name: np.asarray(array) for name, array in arrays.items()}
            outputs = self._session.run(self.output_names, given)
        except Exception as err:  # pybind classes of ONNX Runtime with no common public base
            shapes = {name: list(np.shape(array)) for name, array in arrays.items()}
            raise InvalidModel(
                f"the model can't run with input shapes {shapes}: {brief(err)}"
            ) from err
        return dict(zip(self.output_names, outputs, strict=True))


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """How an ONNX Runtime engine was built."""

    build_s: float
    runtime_version: str


def build_engine(typed: Path, engine: Path, *, weights_beside: bool = False) -> BuiltGraph:
    """Write the graph as ONNX Runtime optimises it for CPUs.

    The level is *extended*: fusions, constant folding and integer kernels for Q/DQ, which work on every
    machine of this architecture. The last level arranges tensors for this CPU's vector width, and is left
    to the machine that loads the engine.

    Parameters:
        weights_beside: store large weights in a file next to the engine, for models over the file limit.

    Raises:
        EngineBuildFailed: has the runtime's reason.
    """
    start = time.monotonic()
    options = writing_options(engine, weights_beside=weights_beside)
    try:
        onnxruntime.InferenceSession(str(typed), options, providers=[_ON_CPU])
    except Exception as err:  # pybind classes of ONNX Runtime with no common public base
        raise EngineBuildFailed(
            f"ONNX Runtime {VERSION} can't build this graph: {brief(err)}"
        ) from err
    return BuiltGraph(build_s=time.monotonic() - start, runtime_version=VERSION)


def writing_options(engine: Path, *, weights_beside: bool) -> onnxruntime.SessionOptions:
    """Options for a session that writes its optimised graph to a file, with large weights in it or beside."""
    options = session_options("extended")
    options.optimized_model_filepath = str(engine)
    # The default, 4, also quantises the other factor of MatMulNBits. 1 is fp32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if weights_beside:
        entry = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{entry}_file_name", f"{engine.name}.data")
        options.add_session_config_entry(f"{entry}_min_size_in_bytes", "8192")
    return options


def session_options(optimisation: Optimisation) -> onnxruntime.SessionOptions:
    """Options for every session: all cores, only errors in the log."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimisation]
    options.intra_op_num_threads = cpu_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Threads spinning between runs would slow anything timed next to this session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def brief(err: Exception) -> str:
    """The runtime's reason, without error codes."""
    text = " ".join(str(err).split())
    reason = _CODE.sub("", text)
    return _SOURCE.sub("", reason)[:400] or type(err).__name__
