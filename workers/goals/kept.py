"""A calibration that keeps what the user asked for: a metric's goal, and layers in floats or quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx

from farm.errors import CalibrationFailed
from farm.reports.search import Search
from farm.specs.accuracy_goal import Pins
from farm.stages import CalibrateParams, ReportProgress
from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.goals import search
from workers.goals.judging import Jury
from workers.goals.pins import pinned
from workers.goals.trail import Trail
from workers.goals.units import units_of, without
from workers.goals.variants import Given
from workers.graphs import files, floats, interface
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles
from workers.inputs.samples import Arrays
from workers.measure.judged import labelled
from workers.quantize.magnitudes import Magnitudes

#: Calibration samples for bias correction, channels' magnitudes, inputs' moments and units' harm.
_SAMPLES = 128

Quantise = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A calibrated graph.

    Parameters:
        search: how it was found; None without a goal.
        wide: operators that GPUs compute in fp32 for the goal's sake, by their first outputs.
    """

    quantized: onnx.ModelProto
    search: Search | None = None
    wide: frozenset[str] = frozenset()


def kept(
    params: CalibrateParams,
    model: onnx.ModelProto,
    quantised: Quantise,
    seen: Callable[[onnx.ModelProto], Magnitudes],
    samples: Arrays,
    batch: Batch,
    *,
    evaluation: Path | None,
    folder: Path,
    progress: ReportProgress,
) -> Kept:
    """The quantised graph that keeps the goal; without a goal the plain one.

    Parameters:
        model: with its weights.
        quantised: quantises a graph from the calibration data.
        seen: the magnitudes of a quantised graph's values on them.
        samples: the calibration data.
        evaluation: what the goal is judged by.

    Raises:
        AccuracyDropped: none keeps it.
        LatencyMissed: none that keeps it is fast enough.
        CalibrationFailed: a pin names nothing, or leaves nothing quantised.
        InvalidData: the evaluation data don't fit.
    """
    plain = quantised(model)
    if params.goal is None or evaluation is None:
        return Kept(quantized=_pinned(plain, params.pins))
    trail = Trail(params.goal.budget_s, progress)
    inputs, ranges = interface.input_specs(model), interface.axis_ranges(model)
    profile = resolve_profiles(inputs, params.profiles, ranges)[0]
    source = floats.calibratable(model)
    size = batch.opt
    given = Given(
        source=source,
        plain=plain,
        again=quantised,
        seen=seen,
        batches=list(
            islice(batch.split(samples, size, smallest=batch.min), max(1, _SAMPLES // size))
        ),
        batch=batch,
        shapes=batch.at(profile, size),
        folder=folder,
    )
    judged_by = Batch.of(inputs, profile, interface.output_specs(model))
    evaluated, labels = labelled(
        evaluation,
        params.fixed_inputs,
        inputs,
        profile,
        judged_by,
        params.goal.metric,
        judged=True,
        preprocess=params.goal.preprocess,
    )
    jury = Jury(_reference(source, folder), evaluated, labels, judged_by, params.goal)
    made = search.found(given, params.goal, params.pins, jury, trail)
    return Kept(quantized=made.quantized, search=made.report, wide=made.wide)


def _pinned(quantized: onnx.ModelProto, pins: Pins) -> onnx.ModelProto:
    if pins == Pins():
        return quantized
    units = units_of(quantized)
    in_floats, _ = pinned(quantized, units, pins)
    if not any(unit.id not in in_floats for unit in units.products):
        raise CalibrationFailed(
            "keep_float leaves no convolution or matrix product quantised",
            hint="name fewer operators, or choose fp16",
        )
    return without(quantized, units, in_floats)


def _reference(source: onnx.ModelProto, folder: Path) -> OrtModel:
    with files.written(source, folder / "reference.onnx") as file:
        return OrtModel(file, providers=fastest_providers())
