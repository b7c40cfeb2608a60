"""Measure: an engine's accuracy against its source, and its latency if it can run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from farm.errors import InvalidData
from farm.reports.metrics import Metrics
from farm.specs.roles import Role
from farm.specs.runtime import OF_PROGRAMS
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.source import DataKind
from farm.stages import MeasureFacts, MeasureParams
from workers.backends.ort.cpu import OrtModel, cpu_threads
from workers.graphs import files, interface, vocabularies, walk
from workers.graphs.rounding import is_half_typed, rounded_model
from workers.inputs.advice import advice
from workers.inputs.batch import Batch
from workers.inputs.profiles import AxisRanges, resolve_profiles
from workers.inputs.samples import (
    SEED,
    Arrays,
    Runnable,
    check_ids,
    check_samples,
    open_samples,
    random_arrays,
    split,
)
from workers.inputs.standins import tried
from workers.measure import cpu, engines, gpu, silent
from workers.measure.ends import at_ends
from workers.measure.invariance import batch_invariance
from workers.measure.judged import compare, labelled
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
    subject, measured_on, inputs, outputs, ranges, graph = _subject(stage, params, source)
    profile = resolve_profiles(inputs, params.profiles, ranges)[0]
    batch = Batch.of(inputs, profile, outputs)
    stage.progress("compare", None)
    samples, labels, data = _data(stage, params, source, inputs, profile, batch)
    if graph is not None and data is not DataKind.RANDOM:
        check_ids(samples, vocabularies.sizes(graph[1]))
    runnable = subject.engine if isinstance(subject, gpu.Loaded) else subject
    accuracy = compare(
        source, runnable, samples, labels, batch, params.metric, params.task, outputs
    )
    warned = _warnings(stage, samples, inputs, batch, graph) if data is not DataKind.RANDOM else []
    for one in warned:
        print(f"warning: {one}", flush=True)
    accuracy = accuracy.model_copy(
        update={"data": data, "measured_on": measured_on, "data_warnings": shortened(warned)}
    )
    refuse_broken(accuracy, params.max_drop)
    if measured_on == "engine":
        invariance = batch_invariance(runnable, source, samples, batch, params.precision)
        ends = at_ends(runnable, source, samples, profile, batch)
        accuracy = accuracy.model_copy(update={"batch_invariance": invariance, "at_sizes": ends})
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


def _warnings(
    stage: Stage,
    samples: Arrays,
    inputs: Sequence[TensorSpec],
    batch: Batch,
    graph: tuple[Path, onnx.ModelProto] | None,
) -> list[str]:
    """What looks wrong with the data; of a quantised graph also which of its channels they don't reach."""
    found = advice(samples, inputs, batch)
    if graph is None or not walk.is_quantized(graph[1]):
        return found
    file, typed = graph
    files.load_weights(typed, file)
    plain = rounded_model(typed) if is_half_typed(typed) else typed
    about = silent.warning(plain, samples, batch, stage.workdir)
    return found + ([about] if about else [])


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


class _Subject(NamedTuple):
    """What is measured."""

    model: Runnable | gpu.Loaded
    measured_on: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    ranges: AxisRanges
    graph: tuple[Path, onnx.ModelProto] | None  #: as typed, with its file; None for a program


def _subject(stage: Stage, params: MeasureParams, source: Runnable) -> _Subject:
    """The engine if it runs here, else its typed ONNX."""
    if params.target is not None and params.target.runtime in OF_PROGRAMS:
        assert isinstance(source, EagerModel)
        model = engines.load(params.target, stage.inputs[Role.ENGINE], stage.workdir)
        inputs, outputs = source.input_specs, source.output_specs
        return _Subject(model, "engine", inputs, outputs, source.axis_ranges, None)
    file, typed = files.read_model(stage.inputs[Role.TYPED], stage.workdir)
    subject, measured_on = _of_onnx(stage, params, file, typed)
    inputs, outputs = interface.input_specs(typed), interface.output_specs(typed)
    return _Subject(
        subject, measured_on, inputs, outputs, interface.axis_ranges(typed), (file, typed)
    )


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
        samples, labels = labelled(
            stage.inputs[Role.EVALUATION],
            params.fixed_inputs,
            inputs,
            profile,
            batch,
            params.metric,
            judged=judged,
            preprocess=params.preprocess,
        )
        return samples, labels, DataKind.EVALUATION
    if judged:
        raise InvalidData(
            "the accuracy drop can't be judged without evaluation data",
            hint="pass evaluation data with the array 'label', or leave out max_drop",
        )
    if Role.CALIBRATION in stage.inputs:
        arrays = _opened(stage.inputs[Role.CALIBRATION], params, inputs)
        given = check_samples(arrays, inputs, profile)
        _, held = split(given, inputs, profile, params.hold_out)
        samples = given if held is None else held
        kind = DataKind.CALIBRATION if held is None else DataKind.HELD_OUT
        first = np.arange(batch.count(samples)) < MAX_CALIBRATION_SAMPLES
        return batch.select(samples, first), {}, kind
    return random_samples(source, inputs, profile), {}, DataKind.RANDOM


def _opened(path: Path, params: MeasureParams, inputs: Sequence[TensorSpec]) -> Arrays:
    return open_samples(path, params.fixed_inputs, preprocess=params.preprocess, inputs=inputs)


def random_samples(source: Runnable, inputs: Sequence[TensorSpec], profile: Profile) -> Arrays:
    """Seeded random samples, if possible ones for which the source's outputs are finite: two opt batches if
    the batch is dynamic, else one."""
    batch = Batch.of(inputs, profile)
    count = RANDOM_BATCHES * batch.opt if batch.is_dynamic else batch.opt
    found, kind = tried(source, inputs, batch.at(profile, batch.opt), seed=SEED, profile=profile)
    more = random_arrays(inputs, batch.at(profile, count), seed=SEED, profile=profile, kind=kind)
    # Inputs without a batch keep the values that the source was tried with.
    return {name: more[name] if name in batch.inputs else found[name] for name in more}
