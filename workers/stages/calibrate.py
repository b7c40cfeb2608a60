"""Calibrate: explicit INT8 or FP8 Q/DQ from the user's data, by ModelOpt.

One calibration serves every engine: its Q/DQ graph is written with the remainder in fp16, for GPUs, or in
bf16 where values leave the range of fp16 and the GPU has bf16; and INT8 in fp32, for CPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from modelopt.onnx.autocast.convert import convert_to_f16
from modelopt.onnx.quantization import quantize
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader

from farm.errors import CalibrationFailed, InvalidData
from farm.specs import CalibrateParams, Precision
from workers import graphs
from workers.backends import ort
from workers.batch import Batch
from workers.folding import fold_quantized_weights
from workers.measure.accuracy import Comparison
from workers.profiles import resolve_profiles
from workers.rounding import rounded_model
from workers.samples import Arrays, samples_for
from workers.stages import Stage, StageResult

#: A larger value's square leaves the range of fp16. Only graphs with such values are tried in fp16.
_SUSPECT = 2.0**8
#: The largest level, which the scale is for.
_LEVELS = {Precision.INT8: 127.0, Precision.FP8: 448.0}
#: How much less like the source's the outputs may be with the remainder in fp16 than in fp32.
_ROUNDING = 0.01

Progress = Callable[[str, float | None], None]


def run(stage: Stage) -> StageResult:
    """Write ``typed_half`` and, for GPUs without bf16, ``typed_fp16``, and ``typed`` for CPUs where
    they have the type, from ``onnx`` and ``calibration``.

    Raises:
        InvalidData: if the data don't fit the graph's inputs, or are too few.
        CalibrationFailed: if the graph is quantised already, or nothing in it can be.
    """
    params = stage.params
    assert isinstance(params, CalibrateParams)
    file, model = graphs.read_model(stage.inputs["onnx"], stage.workdir)
    _refuse_unquantisable(model, params.precision)
    inputs = graphs.input_specs(model)
    profile = resolve_profiles(inputs, params.profiles, graphs.axis_ranges(model))[0]
    batch = Batch.of(inputs, profile)
    samples, _ = samples_for(
        stage.inputs, inputs, profile, hold_out=params.hold_out, fixed=params.fixed_inputs
    )
    size, smallest = batch_size(params.batch_size, batch)
    batches = list(batch.split(samples, size, smallest=smallest))
    _refuse_too_few(batches, batch.count(samples), size, params)

    if file is stage.inputs["onnx"]:
        file = stage.workdir / "source.onnx"
        shutil.copyfile(stage.inputs["onnx"], file)  # ModelOpt writes beside what it reads
    typed = stage.workdir / "typed.onnx"
    reader = BatchReader(batches, stage.progress)
    _quantize(file, typed, reader, params, is_large=graphs.is_large(model))
    quantized = onnx.load(str(typed))
    pairs = _checked_pairs(quantized, params.precision)
    graphs.keep_axis_ranges(quantized, graphs.axis_ranges(model))
    fold_quantized_weights(quantized)
    graphs.save_model(quantized, typed)
    stage.progress("cast the remainder", None)
    count = batch.count(batches[0])
    outputs, remainder = _write_for_gpus(stage, quantized, typed, batches[0], count)
    if params.precision is Precision.INT8:
        outputs["typed"] = typed
    facts = {
        "samples": sum(map(batch.count, batches)),
        "batch_size": size,
        "batches": len(batches),
        "precision": str(params.precision),
        "method": params.method,
        "qdq_pairs": pairs,
        "remainder": remainder,
        "opset": graphs.opset_of(quantized),
    }
    return StageResult(outputs=outputs, facts=facts)


def _write_for_gpus(
    stage: Stage, quantized: onnx.ModelProto, typed: Path, batch: Arrays, count: int
) -> tuple[dict[str, Path], str]:
    """``typed_fp16`` and ``typed_half``, and the type of the remainder of the latter."""
    params = stage.params
    assert isinstance(params, CalibrateParams)
    paths = {role: stage.workdir / f"{role}.onnx" for role in ("typed_fp16", "typed_half")}
    fp16 = _with_remainder(quantized, Precision.FP16)
    graphs.save_model(fp16, paths["typed_fp16"])
    if _is_suspect(quantized, params.precision) and not _fits(stage, fp16, typed, batch, count):
        print("values leave the range of fp16: the remainder is bf16 for GPUs that have it")
        graphs.save_model(_with_remainder(quantized, Precision.BF16), paths["typed_half"])
        return paths, str(Precision.BF16)
    paths["typed_half"].hardlink_to(paths["typed_fp16"])
    return paths, str(Precision.FP16)


def _with_remainder(quantized: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(quantized)
    typed: onnx.ModelProto = convert_to_f16(
        copy, low_precision_type=str(precision), keep_io_types=True
    )
    graphs.keep_axis_ranges(typed, graphs.axis_ranges(quantized))
    return typed


def _is_suspect(quantized: onnx.ModelProto, precision: Precision) -> bool:
    """Whether a calibrated range is so wide that what is made of its values may leave fp16's."""
    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    scales = {n.input[1] for n in quantized.graph.node if n.op_type == "QuantizeLinear"}
    widest = max(
        (float(numpy_helper.to_array(tensors[name]).max()) for name in scales if name in tensors),
        default=0.0,
    )
    return widest * _LEVELS[precision] > _SUSPECT


def _fits(stage: Stage, fp16: onnx.ModelProto, typed: Path, batch: Arrays, count: int) -> bool:
    """Whether the graph is as like its source with its remainder in fp16 as in fp32."""
    rounded = stage.workdir / "rounded.onnx"
    graphs.write_model(rounded_model(fp16), rounded)
    source, quantized = (
        graphs.model_file(path, stage.workdir) for path in (stage.inputs["onnx"], typed)
    )
    expected = ort.OrtModel(source).run(batch)
    likeness = []
    for path in (quantized, rounded):
        comparison = Comparison()
        # Optimised, ONNX Runtime would pool in fp8, for which it has no kernel.
        actual = ort.OrtModel(path, optimisation="none").run(batch)
        comparison.add(expected, actual, count)
        cosine = comparison.facts(None)["cosine_mean"]
        likeness.append(-1.0 if comparison.not_finite else cosine)
    rounded.unlink()
    return bool(likeness[1] > likeness[0] - _ROUNDING)


class BatchReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds ModelOpt the user's batches; it reads them more than once, each time from the start."""

    def __init__(self, batches: Sequence[Arrays], progress: Progress) -> None:
        self._batches = batches
        self._progress = progress
        self._position = 0

    def get_next(self) -> Arrays | None:
        if self._position == len(self._batches):
            return None
        batch = self._batches[self._position]
        self._position += 1
        self._progress("calibrate", self._position / len(self._batches))
        return batch

    def get_first(self) -> Arrays:
        """The first batch, without moving on: ModelOpt tries the session with it."""
        return self._batches[0]

    def rewind(self) -> None:
        self._position = 0


def batch_size(asked: int, batch: Batch) -> tuple[int, int]:
    """The batch size to calibrate with, and the smallest batch that the profile allows.

    The asked size is brought into the profile's range; a static batch leaves no choice.
    """
    size = max(batch.min, min(asked, batch.max)) if batch.is_dynamic else batch.max
    if size != asked:
        print(
            f"batch size {size} instead of {asked}: the profile allows {batch.min} to {batch.max}"
        )
    return size, batch.min


def _quantize(
    source: Path, typed: Path, reader: BatchReader, params: CalibrateParams, *, is_large: bool
) -> None:
    try:
        quantize(
            str(source),
            quantize_mode=str(params.precision),
            calibration_method=params.method,
            calibration_data_reader=reader,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(typed),
            log_level="INFO",
            use_external_data_format=is_large,
        )
    except Exception as err:  # it raises whatever it comes across, and bare Exceptions of its own
        raise CalibrationFailed(
            f"ModelOpt can't calibrate this graph for {params.precision}: {graphs.brief(err)}",
            hint="choose fp16; see the job's log for what it stumbled over",
        ) from err
    if not typed.exists():
        raise CalibrationFailed(
            "ModelOpt wrote no quantised model", hint="see the job's log, or choose fp16"
        )


def _checked_pairs(quantized: onnx.ModelProto, precision: Precision) -> int:
    pairs = graphs.qdq_pairs(quantized)
    if pairs == 0:
        raise CalibrationFailed(
            f"the graph has no operator that {precision} can serve: ModelOpt quantises convolutions and "
            "matrix products, but not a product by a vector, as a batch of one is",
            hint="calibrate with a larger batch_size, or choose fp16",
        )
    return pairs


def _refuse_unquantisable(model: onnx.ModelProto, precision: Precision) -> None:
    if graphs.is_quantized(model):
        raise CalibrationFailed(
            "the graph holds Q/DQ nodes already, and would be passed on as it is",
            hint="hand in the unquantised model, or build this one as fp32, which keeps its Q/DQ",
        )
    opset = graphs.opset_of(model)
    if opset < graphs.MIN_OPSET:
        raise CalibrationFailed(
            f"the graph is in opset {opset}, and {precision} needs {graphs.MIN_OPSET}",
            hint=f"export the model with opset {graphs.MIN_OPSET} or later",
        )


def _refuse_too_few(
    batches: Sequence[Arrays], samples: int, size: int, params: CalibrateParams
) -> None:
    if not batches:
        raise InvalidData(
            f"{samples} samples don't fill one batch of {size}, the smallest that the model takes",
            hint=f"pass at least {2 * size} samples",
        )
    if params.method == "entropy" and len(batches) < 2:
        # The histogram's range is that of the first batch: with one there is nothing to compare.
        raise InvalidData(
            f"{samples} samples are a single batch of {size}, and entropy calibration needs two",
            hint=f"pass at least {size + 1} samples, a smaller batch_size, or the method max",
        )
