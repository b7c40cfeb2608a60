"""The export stage: reads the source according to its format, writes the ONNX graph, reports its check."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from farm.reports.records import tensors
from farm.specs.roles import Role
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.source import SourceFormat
from farm.stages import Check, ExportFacts, ExportParams
from workers.backends.ort.cpu import OrtModel
from workers.graphs import files, fixing, interface, opsets, shapes, vocabularies, walk
from workers.graphs.check import check_model, own_operators
from workers.graphs.intake import described, is_modern, modernised
from workers.graphs.normal import normalised
from workers.graphs.standard import MIN_OPSET
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles, value_ranges
from workers.inputs.samples import check_ids, samples_for
from workers.programs.eager import EagerModel
from workers.sources import reference as references
from workers.sources.savedmodel.source import SavedModelSource
from workers.sources.torchscript import TorchScriptSource
from workers.stages.base import Stage, StageResult, shortened
from workers.stages.export import exporter
from workers.stages.export.check import compare, data_for, has_samples, tolerance_of

#: More integers than this aren't sizes: a profile can't hold more for one input.
MAX_SIZES = 64

#: The graph, and the result of its check.
Exported = tuple[onnx.ModelProto, Check]


def run(stage: Stage) -> StageResult:
    """Write ``onnx`` from ``source``.

    Raises:
        InvalidModel: if the source can't be read or exported.
        ProfileMismatch: if the build's profiles don't fit the model's inputs.
        ExportDiverged: if the ONNX graph doesn't reproduce the source's outputs.
    """
    params = stage.params
    assert isinstance(params, ExportParams)
    target = stage.workdir / "model.onnx"
    take = {
        SourceFormat.ONNX: _from_onnx,
        SourceFormat.TORCHSCRIPT: _from_torchscript,
        SourceFormat.SAVEDMODEL: _from_savedmodel,
    }
    model, check = take.get(params.format, _from_program)(stage, params, target)
    return StageResult(outputs={Role.ONNX: target}, facts=_facts(model, check))


def _facts(model: onnx.ModelProto, check: Check) -> ExportFacts:
    return ExportFacts(
        inputs=tensors(interface.input_specs(model)),
        outputs=tensors(interface.output_specs(model)),
        opset=shapes.opset_of(model),
        parameters=walk.parameter_count(model),
        check=check,
    )


def _from_program(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    program = references.program(stage.inputs[Role.SOURCE], params)
    assert program is not None
    stage.progress("export", None)
    source = EagerModel(program)  # before the exporter, which narrows its axes' ranges
    model = normalised(exporter.to_onnx(program))
    exporter.name_axes(model)
    if params.fixed_inputs:
        model = fixing.folded(model)
    interface.keep_axis_ranges(model, source.axis_ranges)
    check_model(model)
    inputs = interface.input_specs(model)
    profiles = resolve_profiles(inputs, params.profiles, interface.axis_ranges(model))
    _keep_sizes(stage, model, inputs, profiles[0])
    files.save_model(model, target)
    stage.progress("check", None)
    check = compare(stage, source, _session(stage, target), inputs, profiles, tolerance_of(model))
    if source.left_out:
        check = check.model_copy(update={"left_out": shortened(source.left_out)})
    return model, check


def _from_torchscript(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    source = TorchScriptSource(stage.inputs[Role.SOURCE], params.fixed_inputs)
    specs = source.input_specs(params.profiles)
    stage.progress("export", None)
    folder = stage.workdir / "exported"
    folder.mkdir()
    profile = resolve_profiles(specs, params.profiles)[0]
    model = source.to_onnx(specs, profile, folder / "model.onnx", opset=exporter.EXPORT_OPSET)
    shutil.rmtree(folder)
    if params.fixed_inputs:
        model = fixing.folded(model)
    check_model(model)
    modern = modernised(model)
    profiles = resolve_profiles(interface.input_specs(modern), params.profiles)
    _keep_sizes(stage, modern, specs, profiles[0])
    files.save_model(modern, target)
    stage.progress("check", None)
    tolerance = tolerance_of(modern)
    check = compare(stage, source, _session(stage, target), specs, profiles, tolerance)
    return modern, check


def _from_savedmodel(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    source = SavedModelSource(stage.inputs[Role.SOURCE], stage.workdir)
    stage.progress("export", None)
    model = described(source.to_onnx())
    if params.fixed_inputs:
        model = fixing.fixed_model(model, params.fixed_inputs)
    check_model(model)
    upgraded = _upgraded(model)
    inputs = interface.input_specs(upgraded)
    profiles = resolve_profiles(inputs, params.profiles)
    _keep_sizes(stage, upgraded, inputs, profiles[0])
    files.save_model(upgraded, target)
    stage.progress("check", None)
    reference = references.savedmodel(source, params.fixed_inputs)
    return upgraded, compare(stage, reference, _session(stage, target), inputs, profiles)


def _from_onnx(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("check", None)
    source = stage.inputs[Role.SOURCE]
    file, given = files.read_model(source, stage.workdir)
    model = described(given)
    original = references.onnx_model(file, model, params.fixed_inputs, stage.workdir)
    if params.fixed_inputs:
        files.load_weights(model, file)
        model = fixing.fixed_model(model, params.fixed_inputs)
    check_model(model)
    inputs = interface.input_specs(model)
    profiles = resolve_profiles(inputs, params.profiles, interface.axis_ranges(model))
    is_new = shapes.opset_of(model) >= MIN_OPSET and is_modern(model)
    if own_operators(model):
        is_new = True  # ONNX's converter doesn't know them, and ONNX Runtime accepts any opset
    has_sizes = _keep_sizes(stage, model, inputs, profiles[0])
    if is_new and model is given and not has_sizes:
        data = data_for(stage, original, inputs, profiles)
        for arrays in data.batches:
            original.run(arrays)
        if file != source and files.weight_bytes(model) <= files.MAX_PROTO_BYTES:
            files.load_weights(model, file)  # one file is simpler for all stages after this
            files.save_model(model, target)
        else:
            shutil.copyfile(source, target)
        return model, data.check(reason="the source is ONNX and was taken as it is")
    stage.progress("upgrade", None)
    files.load_weights(model, file)
    upgraded = _upgraded(model)
    files.save_model(upgraded, target)
    tolerance = tolerance_of(upgraded)
    check = compare(stage, original, _session(stage, target), inputs, profiles, tolerance)
    return upgraded, check


def _keep_sizes(
    stage: Stage, model: onnx.ModelProto, inputs: Sequence[TensorSpec], profile: Profile
) -> bool:
    """Store the user's values for inputs that may be sizes: few integers, the same in every sample; and
    refuse ids that the model lacks, before frameworks do so in their words.

    Returns whether there are any.
    """
    params = stage.params
    assert isinstance(params, ExportParams)
    batch = Batch.of(inputs, profile)
    sizes = [
        spec.name
        for spec in inputs
        if batch.axis_of(spec.name) is None
        and spec.dtype in ("int32", "int64")
        and len(spec.shape) <= 1
    ]
    looked_up = vocabularies.sizes(model)
    if not (sizes or looked_up) or not has_samples(stage):
        return False
    samples, _ = samples_for(
        stage.inputs, inputs, profile, preprocess=params.preprocess, fixed=params.fixed_inputs
    )
    check_ids(samples, looked_up)
    if not sizes:
        return False
    ranges = dict(interface.axis_ranges(model))
    for name in sizes:
        if samples[name].size <= MAX_SIZES:
            ranges |= value_ranges(name, [int(value) for value in samples[name].flat])
    interface.keep_axis_ranges(model, ranges)
    return True


def _session(stage: Stage, path: Path) -> OrtModel:
    file, model = files.read_model(path, stage.workdir)
    return references.session(file, model, stage.workdir, optimisation="all")


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = shapes.opset_of(model)
    if opset >= MIN_OPSET:
        return modernised(model)
    print(f"upgrading from opset {opset} to {MIN_OPSET}", flush=True)
    modern = modernised(opsets.upgraded(model, MIN_OPSET))
    check_model(modern)
    return modern
