"""Calibrate: adds explicit INT8 or FP8 Q/DQ from the user's data, by ModelOpt.

One calibration serves every engine. Its Q/DQ graph is written in fp32 for CPUs, and for GPUs with each
remaining operator typed by its values' range on the data: fp16, or fp32 where fp16 can't hold them; for
products, bf16 on GPUs that have it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.errors import CalibrationFailed, InvalidData
from farm.formats import calibration_caches
from farm.formats.archives import Malformed
from farm.planning import policy
from farm.reports.quantization import AS_IT_CAME
from farm.reports.records import MOST_LISTED
from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.roles import Role
from farm.specs.runtime import Runtime, Target
from farm.specs.source import DataKind
from farm.stages import CalibrateFacts, CalibrateParams
from workers.goals import kept as goals
from workers.graphs import check, files, interface, shapes, standard, walk
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles
from workers.inputs.samples import Arrays, samples_for
from workers.quantize import (
    calibrated,
    fidelity,
    imported,
    kept_histograms,
    modelopt,
    placement,
    qat,
    remainder,
    rules,
)
from workers.quantize.magnitudes import MAX_SAMPLES, Magnitudes
from workers.quantize.stored_weights import fold_quantized_weights
from workers.stages.base import Stage, StageResult

#: Nodes named for each rule, and how much of their names.
_NAMED, _NAME_LENGTH = 100, 200
_CPU = Target(runtime=Runtime.ONNXRUNTIME, gpu=CPU)


def run(stage: Stage) -> StageResult:
    """Write ``typed_half``, ``typed_fp16`` for GPUs without bf16, and ``typed`` for CPUs if they have the
    type, from ``onnx`` and ``calibration``; an already quantised graph doesn't need the latter.

    Raises:
        InvalidData: the data don't fit the graph's inputs, or are too few.
        CalibrationFailed: nothing in the graph can be quantised, or it is already in another type.
    """
    params = stage.params
    assert isinstance(params, CalibrateParams)
    file, model = files.read_model(stage.inputs[Role.ONNX], stage.workdir)
    if walk.is_quantized(model):
        return _as_it_is(stage, params, file, model)
    _refuse_unquantisable(stage, model, params.precision)
    if Role.RANGES in stage.inputs:
        return _with_ranges(stage, params, file, model)
    samples, batch, _ = _samples(stage, params, model)
    size = batch_size(params.batch_size, batch)
    count = batch.count(samples)
    if count < batch.min:
        raise _too_few(count, batch)

    files.load_weights(model, file)
    kept, found = _quantised(stage, params, model, samples, batch, size)
    quantized = kept.quantized
    pairs = walk.qdq_pairs(quantized)
    stage.progress("compare layers", None)
    snr_db = fidelity.by_layer(quantized, fidelity.few(samples, batch), stage.workdir)
    histograms = stage.workdir / "histograms.json"
    told = kept_histograms.recorded(found.kept, quantized, snr_db, params.precision)
    histograms.write_text(told.model_dump_json())
    fold_quantized_weights(quantized)
    typed = stage.workdir / "typed.onnx"
    files.save_model(quantized, typed)
    stage.progress("cast the remainder", None)
    magnitudes = _magnitudes(stage, quantized, samples, batch, size, found)
    outputs, types = _write_for_gpus(stage, quantized, magnitudes, kept.wide)
    outputs[Role.HISTOGRAMS] = histograms
    if policy.refusal(_CPU, params.precision) is None:
        outputs[Role.TYPED] = typed
    facts = CalibrateFacts(
        samples=found.samples,
        batch_size=size,
        batches=found.batches,
        precision=str(params.precision),
        method=params.method,
        chosen=found.chosen,
        qdq_pairs=pairs,
        remainder=max(types, key=lambda name: types[name]),
        remainder_nodes=types,
        snr_db=snr_db,
        left_in_float=_named(rules.left_in_float(quantized)),
        opset=shapes.opset_of(quantized),
    )
    if kept.search is not None:
        facts = facts.model_copy(update={"search": kept.search})
    return StageResult(outputs=outputs, facts=facts)


def _quantised(
    stage: Stage,
    params: CalibrateParams,
    model: onnx.ModelProto,
    samples: Arrays,
    batch: Batch,
    size: int,
) -> tuple[goals.Kept, calibrated.Calibration]:
    """The graph with Q/DQ, how it was found if there is a goal, and its calibration."""
    count = batch.count(samples)
    # ModelOpt only asks whether there is one row, or there are more.
    first = batch.take(samples, slice(0, max(batch.min, min(size, 2))))
    made: list[calibrated.Calibration] = []

    def quantised(graph: onnx.ModelProto) -> onnx.ModelProto:
        stage.progress("place Q/DQ", None)
        placed = modelopt.placed(graph, first, params.precision, stage.workdir)
        found = calibrated.calibrate(
            placed,
            samples,
            batch,
            size=size,
            method=params.method,
            percentile=params.percentile,
            precision=params.precision,
            folder=stage.workdir,
            seen=lambda done: stage.progress("calibrate", done / count),
        )
        made.append(found)
        return placed

    def seen(graph: onnx.ModelProto) -> Magnitudes:
        one = calibrated.of_graph(made, graph, params.precision)
        return _magnitudes(stage, graph, samples, batch, size, one)

    kept = goals.kept(
        params,
        model,
        quantised,
        seen,
        samples,
        batch,
        evaluation=stage.inputs.get(Role.EVALUATION),
        folder=stage.workdir,
        progress=stage.progress,
    )
    found = calibrated.of_graph(made, kept.quantized, params.precision)
    for name, lost in found.not_finite.items():
        print(f"{lost} values of {name} are infinite or NaN: its range is that of the others")
    return kept, found


def _magnitudes(
    stage: Stage,
    quantized: onnx.ModelProto,
    samples: Arrays,
    batch: Batch,
    size: int,
    found: calibrated.Calibration,
) -> Magnitudes:
    """What the types of a graph's remainder are chosen by."""
    telling = _telling(quantized, samples, batch, size, found.extreme)
    largest = placement.with_dequantized(quantized, found.largest)
    return remainder.measured(quantized, telling, stage.workdir, largest)


def _named(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Rule → the first of its nodes, whose names may be of any length."""
    return {rule: [name[:_NAME_LENGTH] for name in names[:_NAMED]] for rule, names in found.items()}


def _as_it_is(
    stage: Stage, params: CalibrateParams, file: Path, model: onnx.ModelProto
) -> StageResult:
    """A graph quantised in training. Its remainder is cast like that of one quantised here."""
    qat.check(model, params.precision)
    if params.goal is not None and params.goal.max_latency_ratio is not None:
        raise CalibrationFailed(
            "the graph is quantised already, so nothing is looked for that takes max_latency_ratio",
            hint="leave out max_latency_ratio, or submit the model from before it was quantised",
        )
    print("the graph is quantised already: nothing is calibrated, and data only run it")
    files.load_weights(model, file)
    samples, batch, kind = _samples(stage, params, model)
    first = next(batch.split(samples, batch.opt, smallest=batch.min), None)
    if first is None:  # too few for a batch, and enough to run the graph
        first = batch.repeated(samples, batch.min)
    typed = stage.workdir / "typed.onnx"
    files.save_model(model, typed)
    stage.progress("cast the remainder", None)
    taken = qat.for_gpus(model)
    magnitudes = remainder.measured(taken, [first], stage.workdir, {})
    outputs, types = _write_for_gpus(stage, taken, magnitudes)
    if policy.refusal(_CPU, params.precision) is None:
        outputs[Role.TYPED] = typed
    facts = CalibrateFacts(
        samples=0,
        precision=str(params.precision),
        method=AS_IT_CAME,
        qdq_pairs=walk.qdq_pairs(model),
        remainder=max(types, key=lambda name: types[name]),
        remainder_nodes=types,
        remainder_by=str(kind),
        opset=shapes.opset_of(model),
    )
    return StageResult(outputs=outputs, facts=facts)


def _with_ranges(
    stage: Stage, params: CalibrateParams, file: Path, model: onnx.ModelProto
) -> StageResult:
    """With the ranges of a calibration cache; data only run the graph."""
    try:
        cache = calibration_caches.read(stage.inputs[Role.RANGES])
    except Malformed as err:
        raise InvalidData(
            f"the calibration cache can't be read: {err}",
            hint="pass the file that TensorRT's calibrator wrote, or calibration data instead",
        ) from err
    samples, batch, kind = _samples(stage, params, model)
    files.load_weights(model, file)
    stage.progress("place Q/DQ", None)
    first = batch.repeated(samples, batch_size(params.batch_size, batch))
    quantized = modelopt.placed(model, first, params.precision, stage.workdir)
    made = imported.scales(quantized, cache)
    print("\n".join(imported.told(made)))
    pairs = walk.qdq_pairs(quantized)
    fold_quantized_weights(quantized)
    typed = stage.workdir / "typed.onnx"
    files.save_model(quantized, typed)
    stage.progress("cast the remainder", None)
    magnitudes = remainder.measured(quantized, [first], stage.workdir, {})
    outputs, types = _write_for_gpus(stage, quantized, magnitudes)
    outputs[Role.TYPED] = typed
    facts = CalibrateFacts(
        samples=0,
        precision=str(params.precision),
        method="tensorrt-cache",
        chosen={"tensorrt-cache": made.given},
        without_range=list(made.absent[:MOST_LISTED]),
        qdq_pairs=pairs,
        remainder=max(types, key=lambda name: types[name]),
        remainder_nodes=types,
        remainder_by=str(kind),
        opset=shapes.opset_of(quantized),
    )
    return StageResult(outputs=outputs, facts=facts)


def _samples(
    stage: Stage, params: CalibrateParams, model: onnx.ModelProto
) -> tuple[Arrays, Batch, DataKind]:
    """The samples to run the graph on, their batch, and a description of them."""
    inputs = interface.input_specs(model)
    profile = resolve_profiles(inputs, params.profiles, interface.axis_ranges(model))[0]
    samples, kind = samples_for(
        stage.inputs,
        inputs,
        profile,
        hold_out=params.hold_out,
        preprocess=params.preprocess,
        fixed=params.fixed_inputs,
    )
    return samples, Batch.of(inputs, profile), kind


def _telling(
    quantized: onnx.ModelProto,
    samples: Arrays,
    batch: Batch,
    size: int,
    extreme: NDArray[np.intp],
) -> list[Arrays]:
    """The batches to measure magnitudes on: where calibration saw the largest, with which others come.

    What branches and loops compute, calibration didn't see.
    """
    if any(walk.bodies(node) for node in quantized.graph.node):
        every = batch.split(samples, size, smallest=batch.min)
        return list(islice(every, max(1, MAX_SAMPLES // size)))
    return list(batch.split(batch.take(samples, extreme), size, smallest=batch.min))


def _write_for_gpus(
    stage: Stage,
    quantized: onnx.ModelProto,
    magnitudes: Magnitudes,
    wide: Collection[str] = (),
) -> tuple[dict[str, Path], dict[str, int]]:
    """``typed_fp16`` and ``typed_half``, and how many operators of the latter's remainder have each type.

    Parameters:
        wide: operators that are fp32 although fp16 holds their values.
    """
    paths: dict[str, Path] = {
        role: stage.workdir / f"{role}.onnx" for role in (Role.TYPED_FP16, Role.TYPED_HALF)
    }
    made = remainder.for_gpus(quantized, magnitudes, wide)
    files.save_model(made.fp16, paths[Role.TYPED_FP16])
    if made.why:
        reasons = ", ".join(f"{why} ({n})" for why, n in sorted(made.why.items()))
        print(f"{sum(made.why.values())} operators of the remainder stay in fp32: {reasons}")
    if made.half is None:
        paths[Role.TYPED_HALF].hardlink_to(paths[Role.TYPED_FP16])
    else:
        files.save_model(made.half, paths[Role.TYPED_HALF])
    return paths, dict(made.types)


def batch_size(asked: int, batch: Batch) -> int:
    """The batch size to calibrate with.

    The requested size is clamped to the profile's range; a static batch leaves no choice.
    """
    size = max(batch.min, min(asked, batch.max)) if batch.is_dynamic else batch.max
    if size != asked:
        print(
            f"batch size {size} instead of {asked}: the profile allows {batch.min} to {batch.max}"
        )
    return size


def _refuse_unquantisable(stage: Stage, model: onnx.ModelProto, precision: Precision) -> None:
    if stage.inputs.keys().isdisjoint((Role.CALIBRATION, Role.RANGES)):
        raise CalibrationFailed(
            f"{precision} needs calibration data, since the graph holds no Q/DQ of its own",
            hint="pass calibration data (--calibration samples.npz), or choose fp16",
        )
    own = check.own_operators(model)
    if own:
        raise CalibrationFailed(
            f"the model has operators of ONNX Runtime's own ({', '.join(own)}), which ModelOpt doesn't know",
            hint="choose fp32 for onnxruntime:cpu, which takes it as it is, integers and all; or submit the "
            "model from before ONNX Runtime optimised or quantised it",
        )
    opset = shapes.opset_of(model)
    if opset < standard.MIN_OPSET:
        raise CalibrationFailed(
            f"the graph is in opset {opset}, and {precision} needs {standard.MIN_OPSET}",
            hint=f"export the model with opset {standard.MIN_OPSET} or later",
        )


def _too_few(samples: int, batch: Batch) -> InvalidData:
    return InvalidData(
        f"{samples} samples don't fill one batch of {batch.min}, the smallest that the model takes",
        hint=f"pass at least {2 * batch.min} samples",
    )
