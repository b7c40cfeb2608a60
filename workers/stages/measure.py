"""Measure: an engine's accuracy against its source, and its latency if it can run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from farm.errors import AccuracyDropped, InvalidData, InvalidModel
from farm.reports.accuracy import Accuracy
from farm.reports.metrics import Metrics
from farm.specs.roles import Role
from farm.specs.runtime import OF_PROGRAMS
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.source import DataKind
from farm.specs.tasks import Metric
from farm.stages import MeasureFacts, MeasureParams
from workers.backends.ort.cpu import OrtModel, cpu_threads
from workers.graphs import files, interface
from workers.graphs.rounding import is_half_typed, rounded_model
from workers.inputs.advice import advice
from workers.inputs.batch import Batch
from workers.inputs.profiles import AxisRanges, resolve_profiles
from workers.inputs.samples import (
    LABEL,
    SEED,
    Arrays,
    Runnable,
    check_labels,
    check_samples,
    open_samples,
    random_arrays,
    split,
)
from workers.inputs.standins import tried
from workers.measure import cpu, engines, gpu
from workers.measure.accuracy import OutputComparison
from workers.measure.invariance import batch_invariance
from workers.measure.task import TaskJudge
from workers.measure.verdict import doubts, refuse_broken
from workers.peers.beside import PeersBeside
from workers.programs.eager import EagerModel
from workers.quantize.saturation import exact_file
from workers.sources.reference import reference
from workers.stages.base import Stage, StageResult, shortened

#: Batches of random data, if neither evaluation nor calibration data were given.
RANDOM_BATCHES = 2
#: Enough calibration samples for the comparison, if no evaluation data were given.
MAX_CALIBRATION_SAMPLES = 256
#: Of labels; each sample counts them all.
_MOST_CLASSES = 100_000

_NO_METRICS = "the engine can't run on this worker: accuracy is that of the typed ONNX, on the CPU"


def run(stage: Stage) -> StageResult:
    """Write ``report``: accuracy, and latency and throughput or why they are missing; and ``peers`` if
    PyTorch was timed.

    Raises:
        AccuracyDropped: the engine is broken, or loses more than ``max_drop``.
        InvalidData: the evaluation data don't fit the model.
    """
    params = stage.params
    assert isinstance(params, MeasureParams)
    torch.set_num_threads(cpu_threads())
    stage.progress("load", None)
    source = reference(stage.inputs[Role.SOURCE], params, stage.workdir)
    subject, measured_on, inputs, outputs, ranges = _subject(stage, params, source)
    profile = resolve_profiles(inputs, params.profiles, ranges)[0]
    batch = Batch.of(inputs, profile, outputs)
    stage.progress("compare", None)
    samples, labels, data = _data(stage, params, source, inputs, profile, batch)
    runnable = subject.engine if isinstance(subject, gpu.Loaded) else subject
    accuracy = _compare(source, runnable, samples, labels, batch, params)
    warned = advice(samples, inputs, batch) if data is not DataKind.RANDOM else []
    for one in warned:
        print(f"warning: {one}", flush=True)
    accuracy = accuracy.model_copy(
        update={"data": data, "measured_on": measured_on, "data_warnings": shortened(warned)}
    )
    refuse_broken(accuracy, params.max_drop)
    if measured_on == "engine":
        invariance = batch_invariance(runnable, source, samples, batch, params.precision)
        accuracy = accuracy.model_copy(update={"batch_invariance": invariance})
    doubtful = doubts(accuracy, params.gates, params.max_drop)
    for doubt in doubtful:
        print(f"doubtful: {doubt}", flush=True)
    is_engine = measured_on == "engine"
    peers = _peers(stage, params, source)
    facts = MeasureFacts(
        accuracy=accuracy,
        doubts=shortened(doubtful),
        metrics=_metrics(stage, subject, source, peers, batch, samples) if is_engine else None,
        metrics_reason=None if is_engine else _NO_METRICS,
    )
    report = stage.workdir / "report.json"
    report.write_text(facts.model_dump_json(indent=2) + "\n")
    files: dict[str, Path] = {Role.REPORT: report}
    if peers and peers.to_keep:
        files[Role.PEERS] = peers.to_keep
    return StageResult(outputs=files, facts=facts)


def _peers(stage: Stage, params: MeasureParams, source: Runnable) -> PeersBeside | None:
    """What times PyTorch beside an engine on a GPU, if PyTorch can run the source."""
    if not isinstance(source, EagerModel):
        return None
    kept = stage.inputs.get(Role.PEERS)
    return PeersBeside(stage.inputs[Role.SOURCE], params, stage.workdir, kept=kept)


def _metrics(
    stage: Stage,
    subject: Runnable | gpu.Loaded,
    source: Runnable,
    peers: PeersBeside | None,
    batch: Batch,
    samples: Arrays,
) -> Metrics:
    """Latency and throughput of an engine that runs here, next to its program if available."""
    params = stage.params
    assert isinstance(params, MeasureParams)
    if isinstance(subject, gpu.Loaded):
        beside = gpu.Conditions(
            peers=peers,
            precision=params.precision,
            tf32=params.options.tf32,
            batch=batch,
            samples=samples,
        )
        return gpu.metrics(subject, beside, stage.progress)
    stage.progress("time", None)
    with stage.quiet():
        eager = source if isinstance(source, EagerModel) else None
        return cpu.metrics(subject, eager, batch, samples, stage.timing_share)


def _subject(
    stage: Stage, params: MeasureParams, source: Runnable
) -> tuple[Runnable | gpu.Loaded, str, Sequence[TensorSpec], Sequence[TensorSpec], AxisRanges]:
    """The measured model (the engine if it runs here, else its typed ONNX), its inputs, outputs and axes."""
    if params.target is not None and params.target.runtime in OF_PROGRAMS:
        assert isinstance(source, EagerModel)
        model = engines.load(params.target, stage.inputs[Role.ENGINE], stage.workdir)
        return model, "engine", source.input_specs, source.output_specs, source.axis_ranges
    file, typed = files.read_model(stage.inputs[Role.TYPED], stage.workdir)
    subject, measured_on = _of_onnx(stage, params, file, typed)
    inputs, outputs = interface.input_specs(typed), interface.output_specs(typed)
    return subject, measured_on, inputs, outputs, interface.axis_ranges(typed)


def _of_onnx(
    stage: Stage, params: MeasureParams, file: Path, typed: onnx.ModelProto
) -> tuple[Runnable | gpu.Loaded, str]:
    if params.target is not None:
        libraries = stage.plugins(params.options)
        engine = stage.inputs[Role.ENGINE]
        return engines.load(params.target, engine, stage.workdir, libraries), "engine"
    if is_half_typed(typed):
        files.load_weights(typed, file)
        file = stage.workdir / "rounded.onnx"
        files.write_model(rounded_model(typed), file)
    return OrtModel(exact_file(file, stage.workdir)), "typed-onnx"


def _data(
    stage: Stage,
    params: MeasureParams,
    source: Runnable,
    inputs: Sequence[TensorSpec],
    profile: Profile,
    batch: Batch,
) -> tuple[Arrays, Arrays, DataKind]:
    """Evaluation data, else held-out calibration data, else seeded random data."""
    judged = params.metric is not None or params.max_drop is not None
    if Role.EVALUATION in stage.inputs:
        arrays = open_samples(stage.inputs[Role.EVALUATION], params.fixed_inputs)
        samples = check_samples(arrays, inputs, profile)
        labels = check_labels(arrays, batch.count(samples), params.metric)
        if judged and not labels:
            raise InvalidData(
                "the accuracy drop can't be judged: the evaluation data hold no 'label'",
                hint="add the array 'label' with a class index per sample, or leave out max_drop",
            )
        return samples, labels, DataKind.EVALUATION
    if judged:
        raise InvalidData(
            "the accuracy drop can't be judged without evaluation data",
            hint="pass evaluation data with the array 'label', or leave out max_drop",
        )
    if Role.CALIBRATION in stage.inputs:
        arrays = open_samples(stage.inputs[Role.CALIBRATION], params.fixed_inputs)
        given = check_samples(arrays, inputs, profile)
        _, held = split(given, inputs, profile, params.hold_out)
        samples = given if held is None else held
        kind = DataKind.CALIBRATION if held is None else DataKind.HELD_OUT
        first = np.arange(batch.count(samples)) < MAX_CALIBRATION_SAMPLES
        return batch.select(samples, first), {}, kind
    return random_samples(source, inputs, profile), {}, DataKind.RANDOM


def random_samples(source: Runnable, inputs: Sequence[TensorSpec], profile: Profile) -> Arrays:
    """Seeded random samples, if possible ones for which the source's outputs are finite: two opt batches if
    the batch is dynamic, else one."""
    batch = Batch.of(inputs, profile)
    count = RANDOM_BATCHES * batch.opt if batch.is_dynamic else batch.opt
    found, kind = tried(source, inputs, batch.at(profile, batch.opt), seed=SEED, profile=profile)
    more = random_arrays(inputs, batch.at(profile, count), seed=SEED, profile=profile, kind=kind)
    # Inputs without a batch keep the values that the source was tried with.
    return {name: more[name] if name in batch.inputs else found[name] for name in more}


def _compare(
    source: Runnable,
    subject: Runnable,
    samples: Arrays,
    labels: Arrays,
    batch: Batch,
    params: MeasureParams,
) -> Accuracy:
    judge = _judge(labels, params)
    classes = labels[LABEL].astype(np.int64) if labels and judge is None else None
    varying: dict[str, int] = {}
    while True:
        comparison = OutputComparison(
            batch_axes=batch.output_axes,
            places=() if classes is None else classes.shape[1:],
            varying=dict(varying),
        )
        for arrays in batch.split(samples, batch.opt, smallest=batch.min):
            expected, actual = source.run(arrays), subject.run(arrays)
            _check_outputs(expected, actual)
            start, count = comparison.samples, batch.count(arrays)
            comparison.add(expected, actual, count)
            if judge:
                given = {name: each[start : start + count] for name, each in labels.items()}
                of_source, of_engine = (_by_sample(o, batch, count) for o in (expected, actual))
                judge.add(of_source, of_engine, given)
        if comparison.varying == varying:
            break
        varying, judge = comparison.varying, _judge(labels, params)
    _refuse_unfit(comparison, samples, batch)
    accuracy = comparison.found(classes)
    if judge:
        accuracy = accuracy.model_copy(update={"task": judge.found()})
    if classes is not None and accuracy.task is None:
        raise InvalidData(
            f"there are labels of shape {list(classes.shape)}, but no output has classes of that shape",
            hint="labels need an output of scores [samples, classes] or [samples, classes, …], or of "
            "integers of the labels' own shape; for a model that isn't a classifier choose its metric, or "
            "leave 'label' out",
        )
    return accuracy


def _judge(labels: Arrays, params: MeasureParams) -> TaskJudge | None:
    """What judges the task, unless it is the top-1 of whichever output has classes."""
    metric, options = params.metric or Metric.TOP1, params.task
    if not labels or (metric is Metric.TOP1 and options.output is None):
        return None
    label = labels[LABEL]
    of_classes = metric in (Metric.MIOU, Metric.F1) and label.size
    classes = int(label.max()) + 1 if of_classes else 0
    if classes > _MOST_CLASSES:
        raise InvalidData(
            f"'label' has the class {classes - 1}",
            hint=f"classes count from 0, and are below {_MOST_CLASSES}; padding is below 0",
        )
    return TaskJudge(metric=metric, options=options, classes=classes)


def _by_sample(outputs: Arrays, batch: Batch, count: int) -> Arrays:
    """The outputs that have the samples along an axis, with that axis first."""
    found: Arrays = {}
    for name, array in outputs.items():
        axis = batch.axis_of_output(name)
        if axis is not None and array.ndim > axis and array.shape[axis] == count:
            found[name] = np.moveaxis(array, axis, 0)
    return found


def _refuse_unfit(comparison: OutputComparison, samples: Arrays, batch: Batch) -> None:
    if comparison.samples == 0:
        raise InvalidData(
            f"{batch.count(samples)} samples don't fill the model's smallest batch of {batch.min}",
            hint=f"pass at least {batch.min} samples",
        )
    if comparison.not_finite:
        raise AccuracyDropped(
            f"{comparison.not_finite} of the outputs are NaN or infinite, and finite in the source",
            hint="choose bf16 or fp32, or for int8 a GPU that has bf16 (sm_80 and later): values of this "
            "model leave the range of fp16",
        )


def _check_outputs(expected: Arrays, actual: Arrays) -> None:
    """Check ranks only: sizes may depend on the data, and so on rounding."""
    for name, array in expected.items():
        if name not in actual or actual[name].ndim != array.ndim:
            raise InvalidModel(
                f"the source's output {name!r} has shape {list(array.shape)}, and the engine's "
                f"outputs are { ({n: list(a.shape) for n, a in actual.items()}) }",
                hint="this is the farm's fault, or the runtime's: report it with the model; until then "
                "leave that output out of the model",
            )
