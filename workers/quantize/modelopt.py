"""Q/DQ as ModelOpt places it, by the shapes in one batch. Whatever it makes of the values is replaced.

ModelOpt knows which operators TensorRT fuses, which of their inputs it wants in integers, and which tensors
had better share a scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import qdq_quantizer
from onnxruntime.quantization.calibrate import CalibrationDataReader

from farm.errors import CalibrationFailed
from farm.specs.precision import Precision
from workers.graphs import check, files, floats, interface, walk
from workers.graphs.normal import normalised
from workers.inputs.samples import Arrays
from workers.quantize import placement, rules, unquantised


def placed(
    model: onnx.ModelProto, first: Arrays, precision: Precision, folder: Path
) -> onnx.ModelProto:
    """The Q/DQ graph in fp32 with the model's own outputs; its activations' scales are of one batch.

    Parameters:
        model: with its weights.
        folder: for files on the way.

    Raises:
        CalibrationFailed: ModelOpt stumbles over the graph, or finds nothing in it to quantise.
    """
    wide = floats.calibratable(model)
    through = walk.take_out_given(wide)
    file, made = folder / "source.onnx", folder / "typed.onnx"
    files.write_model(wide, file)  # ModelOpt writes next to the file it reads
    _quantize(file, made, OneBatch(first), precision, is_large=files.is_large(model))
    quantized = normalised(onnx.load(str(made)))
    for position, value in through.items():  # in their original order
        quantized.graph.output.insert(position, value)
    rules.without_heads(quantized, {name: array.shape for name, array in first.items()})
    _check_pairs(quantized, precision)
    interface.keep_axis_ranges(quantized, interface.axis_ranges(model))
    return quantized


class OneBatch(CalibrationDataReader):  # type: ignore[misc]
    """A batch for ModelOpt, which places Q/DQ by the shapes in it, and reads it more than once."""

    def __init__(self, batch: Arrays) -> None:
        self._batch = batch
        self._is_read = False

    def get_next(self) -> Arrays | None:
        given = None if self._is_read else self._batch
        self._is_read = True
        return given

    def get_first(self) -> Arrays:
        """The batch, without reading it: ModelOpt tries the session with it."""
        return self._batch

    def rewind(self) -> None:
        self._is_read = False


def _quantize(
    source: Path, typed: Path, reader: OneBatch, precision: Precision, *, is_large: bool
) -> None:
    try:
        with _quick_scales():
            quantize(
                str(source),
                quantize_mode=str(precision),
                calibration_method="max",
                calibration_data_reader=reader,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(typed),
                log_level="INFO",
                use_external_data_format=is_large,
            )
    except Exception as err:  # it may raise anything, including bare Exceptions
        raise CalibrationFailed(
            f"ModelOpt can't calibrate this graph for {precision}: {check.brief(err)}",
            hint="choose fp16; see the job's log for what it stumbled over",
        ) from err
    if not typed.exists():
        raise CalibrationFailed("ModelOpt wrote no quantised model")


@contextmanager
def _quick_scales() -> Iterator[None]:
    """Compute the scales of weights as ONNX Runtime does, to the bit, but for its checks of each channel.

    These took 40 % of ModelOpt's time on ResNet-50, which has 27,560 channels.
    """
    checked = qdq_quantizer.compute_data_quant_params

    def computed(
        data: NDArray[np.generic], quant_type: int, symmetric: bool, *others: Any, **options: Any
    ) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        # What else it may ask for changes the scale.
        is_plain = symmetric and not any(others) and not any(options.values())
        if is_plain and quant_type == TensorProto.INT8 and data.dtype == np.float32 and data.size:
            most = max(-data.min(), data.max())
            if np.isfinite(most):
                scale = placement.scale_of(float(most), Precision.INT8)
                return np.array(0, np.int8), np.array(scale)
        made: tuple[NDArray[np.generic], NDArray[np.generic]]
        made = checked(data, quant_type, symmetric, *others, **options)
        return made

    qdq_quantizer.compute_data_quant_params = computed
    try:
        yield
    finally:
        qdq_quantizer.compute_data_quant_params = checked


def _check_pairs(quantized: onnx.ModelProto, precision: Precision) -> None:
    if walk.qdq_pairs(quantized) == 0:
        why, hint = unquantised.reasons(quantized)
        raise CalibrationFailed(
            f"no convolution or matrix product of the graph can be {precision}: {why}", hint=hint
        )
