"""Q/DQ as ModelOpt places it, by the shapes in one batch. Whatever it makes of the values is replaced.

ModelOpt knows which operators TensorRT fuses, which of their inputs it wants in integers, and which tensors
had better share a scale.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader

from farm.errors import CalibrationFailed
from farm.specs.precision import Precision
from workers.graphs import check, files, floats, interface, walk
from workers.graphs.normal import normalised
from workers.inputs.samples import Arrays
from workers.quantize import rules, shortcuts, unquantised


def placed(
    model: onnx.ModelProto, first: Arrays, precision: Precision, folder: Path
) -> onnx.ModelProto:
    """The Q/DQ graph in fp32 with the model's own outputs; its activations' scales are made up, each its own.

    Parameters:
        model: in normal form, with its weights.
        folder: for files on the way.

    Raises:
        CalibrationFailed: ModelOpt stumbles over the graph, or finds nothing in it to quantise.
    """
    wide = floats.calibratable(model)
    through = walk.take_out_given(wide)
    file, made = folder / "source.onnx", folder / "typed.onnx"
    stated = list(wide.graph.value_info)
    del wide.graph.value_info[:]  # ModelOpt would clear it, and write another file
    files.write_model(wide, file)  # ModelOpt writes next to the file it reads
    wide.graph.value_info.extend(stated)
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
        with shortcuts.taken():
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


def _check_pairs(quantized: onnx.ModelProto, precision: Precision) -> None:
    if walk.qdq_pairs(quantized) == 0:
        why, hint = unquantised.reasons(quantized)
        raise CalibrationFailed(
            f"no convolution or matrix product of the graph can be {precision}: {why}", hint=hint
        )
