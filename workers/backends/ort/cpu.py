"""ONNX Runtime on the CPU: sessions for checks and measurements, and engines for ``cpu``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
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
_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_LOG_ERRORS_ONLY = 3
_LOG_NO_ERRORS = 4
#: ``[ONNXRuntimeError] : 1 : FAIL : ``, and the place in its sources that comes before a reason.
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:")
_SOURCE = re.compile(
    r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*(?:\([^()]*\)[^()]*)*\)(?: const)?(?: \[with [^\]]*\])? "
)


def cpu_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class OrtModel:
    """An ONNX file, or a model's bytes, in an ONNX Runtime session on the CPU.

    Parameters:
        is_engine: as its users' sessions run it; any other graph's Q/DQ are computed in floats, as
            they are written.
        quiet: log no errors: they are expected, and raised.

    Raises:
        InvalidModel: if the runtime can't load the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimisation: Optimisation = "all",
        is_engine: bool = False,
        quiet: bool = False,
    ) -> None:
        options = session_options(optimisation)
        if quiet:
            options.log_severity_level = _LOG_NO_ERRORS
        if not is_engine:
            # Else 16-bit sums may saturate here, and a session rounds what the graph has in floats.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
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
            InvalidModel: if the model can't run at the shapes of this batch.
        """
        try:
            # A scalar that was taken out of an array is none, and ONNX Runtime asks for one.
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
    """How an engine of ONNX Runtime was built."""

    build_s: float
    runtime_version: str


def build_engine(typed: Path, engine: Path, *, weights_beside: bool = False) -> BuiltGraph:
    """Write the graph as ONNX Runtime optimises it for CPUs.

    The level is *extended*: fusions, constant folding and integer kernels for Q/DQ, which are good
    on every machine of this architecture. The last level lays tensors out for the vector width of
    the CPU at hand, and is left to the machine that loads the engine.

    Parameters:
        weights_beside: keep large weights in a file beside the engine, for more than a file may hold.

    Raises:
        EngineBuildFailed: with the runtime's reason.
    """
    start = time.monotonic()
    options = writing_options(engine, weights_beside=weights_beside)
    try:
        onnxruntime.InferenceSession(str(typed), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # pybind classes of ONNX Runtime with no common public base
        raise EngineBuildFailed(
            f"ONNX Runtime {VERSION} can't build this graph: {brief(err)}"
        ) from err
    return BuiltGraph(build_s=time.monotonic() - start, runtime_version=VERSION)


def writing_options(engine: Path, *, weights_beside: bool) -> onnxruntime.SessionOptions:
    """Of a session that writes its graph to a file as it optimises it, large weights beside it or in it."""
    options = session_options("extended")
    options.optimized_model_filepath = str(engine)
    # By default what MatMulNBits multiplies is quantised as well: 4. 1 is fp32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if weights_beside:
        entry = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{entry}_file_name", f"{engine.name}.data")
        options.add_session_config_entry(f"{entry}_min_size_in_bytes", "8192")
    return options


def session_options(optimisation: Optimisation) -> onnxruntime.SessionOptions:
    """Of every session: all cores, errors alone in the log."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimisation]
    options.intra_op_num_threads = cpu_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Threads that spin between runs would slow whatever is timed beside this session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def brief(err: Exception) -> str:
    """The runtime's reason, without its codes."""
    text = " ".join(str(err).split())
    reason = _CODE.sub("", text)
    return _SOURCE.sub("", reason)[:400] or type(err).__name__
