"""Export: the source as one ONNX file, checked against the source."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import ExportedProgram

from farm.errors import ExportDiverged, InvalidModel
from farm.specs.roles import Role
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.source import DataKind, SourceFormat
from farm.stages import ExportParams
from workers.backends.ort.cpu import OrtModel
from workers.graphs import files, fixing, floats, interface, opsets, shapes, walk
from workers.graphs.check import check_model, own_operators
from workers.graphs.modern import described, is_modern, modernised
from workers.graphs.normal import normalised
from workers.graphs.standard import MIN_OPSET
from workers.inputs.batch import Arrays, Batch
from workers.inputs.profiles import resolve_profiles, value_ranges
from workers.inputs.samples import Runnable, samples_for
from workers.inputs.standins import tried
from workers.measure.difference import NO_DIFFERENCE, Difference, difference
from workers.programs.eager import SYMBOL, EagerModel, axis_names, input_names, output_names
from workers.sources import reference as references
from workers.sources.savedmodel.source import SavedModelSource
from workers.sources.torchscript import TorchScriptSource
from workers.stages.base import Stage, StageResult

#: Every runtime of the farm reads it, and Q/DQ may have fp16 scales in it.
EXPORT_OPSET = 20
#: A larger error, as a share of the output's largest magnitude, isn't rounding any more.
TOLERANCE = 1e-3
#: Of sources that compute in these, which frameworks round in other places: 16 steps of the type.
HALF_TOLERANCES = {"float16": 2.0**-6, "bfloat16": 2.0**-3}
#: Where a profile allows many, this batch size is enough to show that the batch is dynamic.
SMALL_BATCH = 2
SEED = 0
#: More integers than that say no size: it is what a profile may hold of an input's.
MAX_SIZES = 64

#: The graph, and what the check of it found.
Exported = tuple[onnx.ModelProto, dict[str, Any]]


def run(stage: Stage) -> StageResult:
    """Write ``onnx`` from ``source``.

    Raises:
        InvalidModel: if the source can't be read or exported.
        ProfileMismatch: if the build's profiles don't fit the model's inputs.
        ExportDiverged: if the ONNX graph doesn't give the source's outputs.
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


def _facts(model: onnx.ModelProto, check: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": interface.specs_as_json(interface.input_specs(model)),
        "outputs": interface.specs_as_json(interface.output_specs(model)),
        "opset": shapes.opset_of(model),
        "parameters": walk.parameter_count(model),
        "check": check,
    }


def _from_program(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    program = references.program(stage.inputs[Role.SOURCE], params)
    assert program is not None
    stage.progress("export", None)
    source = EagerModel(program)  # before the exporter, which narrows its axes' ranges
    model = normalised(_to_onnx(program))
    _name_axes(model)
    if params.fixed_inputs:
        model = fixing.folded(model)
    interface.keep_axis_ranges(model, source.axis_ranges)
    check_model(model)
    inputs = interface.input_specs(model)
    profiles = resolve_profiles(inputs, params.profiles, interface.axis_ranges(model))
    _keep_sizes(stage, model, inputs, profiles[0])
    files.save_model(model, target)
    stage.progress("check", None)
    check = _compare(stage, source, _session(stage, target), inputs, profiles, _tolerance(model))
    return model, check | ({"left_out": source.left_out} if source.left_out else {})


def _tolerance(model: onnx.ModelProto) -> float:
    return max(HALF_TOLERANCES.get(name, TOLERANCE) for name in floats.float_types(model) or [""])


def _from_torchscript(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    source = TorchScriptSource(stage.inputs[Role.SOURCE], params.fixed_inputs)
    specs = source.input_specs(params.profiles)
    stage.progress("export", None)
    folder = stage.workdir / "exported"
    folder.mkdir()
    profile = resolve_profiles(specs, params.profiles)[0]
    model = source.to_onnx(specs, profile, folder / "model.onnx", opset=EXPORT_OPSET)
    shutil.rmtree(folder)
    if params.fixed_inputs:
        model = fixing.folded(model)
    check_model(model)
    modern = modernised(model)
    profiles = resolve_profiles(interface.input_specs(modern), params.profiles)
    _keep_sizes(stage, modern, specs, profiles[0])
    files.save_model(modern, target)
    stage.progress("check", None)
    tolerance = _tolerance(modern)
    check = _compare(stage, source, _session(stage, target), specs, profiles, tolerance)
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
    return upgraded, _compare(stage, reference, _session(stage, target), inputs, profiles)


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
        is_new = True  # ONNX's converter doesn't know them, and ONNX Runtime takes any opset
    has_sizes = _keep_sizes(stage, model, inputs, profiles[0])
    if is_new and model is given and not has_sizes:
        data = _data(stage, original, inputs, profiles)
        for arrays in data.batches:
            original.run(arrays)
        if file != source and files.weight_bytes(model) <= files.MAX_PROTO_BYTES:
            files.load_weights(model, file)  # one file is simpler for all stages after this
            files.save_model(model, target)
        else:
            shutil.copyfile(source, target)
        return model, {"reason": "the source is ONNX and was taken as it is", **data.facts()}
    stage.progress("upgrade", None)
    files.load_weights(model, file)
    upgraded = _upgraded(model)
    files.save_model(upgraded, target)
    tolerance = _tolerance(upgraded)
    check = _compare(stage, original, _session(stage, target), inputs, profiles, tolerance)
    return upgraded, check


def _keep_sizes(
    stage: Stage, model: onnx.ModelProto, inputs: Sequence[TensorSpec], profile: Profile
) -> bool:
    """Write down the values that the user's samples hold of inputs which may be sizes, and say whether
    there are any: integers, a few, and the same for every sample."""
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
    if not sizes or not _has_samples(stage):
        return False
    samples, _ = samples_for(stage.inputs, inputs, profile, fixed=params.fixed_inputs)
    ranges = dict(interface.axis_ranges(model))
    for name in sizes:
        if samples[name].size <= MAX_SIZES:
            ranges |= value_ranges(name, [int(value) for value in samples[name].flat])
    interface.keep_axis_ranges(model, ranges)
    return True


def _has_samples(stage: Stage) -> bool:
    return not stage.inputs.keys().isdisjoint((DataKind.CALIBRATION, DataKind.EVALUATION))


def _session(stage: Stage, path: Path) -> OrtModel:
    file, model = files.read_model(path, stage.workdir)
    return references.session(file, model, stage.workdir, optimisation="all")


def _to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    start = time.monotonic()
    _lay_attention_out(program)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=EXPORT_OPSET,
            input_names=input_names(program),
            output_names=output_names(program),
            optimize=True,
            verify=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as err:
        raise InvalidModel(
            f"PyTorch can't export this program to ONNX: {_reason(err)}",
            hint="rewrite that operator with others, or hand in an ONNX model",
        ) from err
    assert exported is not None
    print(f"exported to opset {EXPORT_OPSET} in {time.monotonic() - start:.1f} s", flush=True)
    return exported.model_proto


def _lay_attention_out(program: ExportedProgram) -> None:
    """Have attention's result contiguous, as that of ONNX is.

    PyTorch's kernel for CPUs gives it transposed. The exporter would take a reshape after it for a view,
    which it isn't of ONNX's result, and fail (torch 2.13, with a bias that a batch shares, as T5's).
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            with graph.inserting_after(node):
                laid_out = graph.call_function(
                    torch.ops.aten.clone.default,
                    (node,),
                    {"memory_format": torch.contiguous_format},
                )
            value = node.meta["val"].clone(memory_format=torch.contiguous_format)
            laid_out.meta = node.meta | {"val": value}
            node.replace_all_uses_with(laid_out, lambda user, kept=laid_out: user is not kept)
    program.graph_module.recompile()


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = shapes.opset_of(model)
    if opset >= MIN_OPSET:
        return modernised(model)
    print(f"upgrading from opset {opset} to {MIN_OPSET}", flush=True)
    modern = modernised(opsets.upgraded(model, MIN_OPSET))
    check_model(modern)
    return modern


def _name_axes(model: onnx.ModelProto) -> None:
    """Call the batch ``batch`` and other axes by their input, as ``EagerModel`` does."""
    graph = model.graph
    names = axis_names(
        {
            value.name: [interface.axis_of(dim) for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
    )
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = SYMBOL.sub(
                    lambda match: names.get(match[0], match[0]), dim.dim_param
                )


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What source and graph are run on: some batches, the samples in each, and what they are."""

    batches: list[Arrays]
    sizes: list[int]
    kind: DataKind
    random: list[str]  #: how random ones were drawn

    def facts(self) -> dict[str, Any]:
        drawn = {"random": self.random} if self.random else {}
        return {"data": str(self.kind), "batches": self.sizes, **drawn}


def _data(
    stage: Stage, source: Runnable, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> _Data:
    """The user's samples, which are of the first profile's shapes, and random ones where there are none:
    at two batch sizes, where the batch is dynamic."""
    params = stage.params
    assert isinstance(params, ExportParams)
    batches: list[Arrays] = []
    sizes: list[int] = []
    drawn: list[str] = []
    kind = DataKind.RANDOM
    for number, profile in enumerate(profiles):
        batch = Batch.of(inputs, profile)
        sizes += batch_sizes(batch)
        if number == 0 and _has_samples(stage):
            samples, kind = samples_for(stage.inputs, inputs, profile, fixed=params.fixed_inputs)
            count = batch.count(samples)
            for size in batch_sizes(batch):
                batches.append(batch.take(samples, [one % count for one in range(size)]))
            continue
        for size in batch_sizes(batch):
            arrays, how = tried(
                source, inputs, batch.at(profile, size), seed=SEED + len(batches), profile=profile
            )
            batches.append(arrays)
            drawn.append(str(how))
    return _Data(batches=batches, sizes=sizes, kind=kind, random=list(dict.fromkeys(drawn)))


def _compare(
    stage: Stage,
    expected: Runnable,
    actual: OrtModel,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    total: Difference = NO_DIFFERENCE
    data = _data(stage, expected, inputs, profiles)
    for arrays in data.batches:
        total = total.merged(difference(expected.run(arrays), actual.run(arrays)))
    why = total.beyond(tolerance)
    if why:
        raise ExportDiverged(
            f"the ONNX graph's outputs aren't the source's: {why}",
            hint="put the model in eval mode before torch.export, and check for random operators",
        )
    return {
        "max_abs_error": total.max_abs_error,
        "max_rel_error": total.max_rel_error,
        **data.facts(),
    }


def batch_sizes(batch: Batch) -> list[int]:
    """The batch sizes to check at: two where the batch is dynamic."""
    if not batch.is_dynamic:
        return [batch.opt]
    other = max(batch.min, min(SMALL_BATCH, batch.max))
    another = batch.min if batch.min != batch.opt else batch.max
    return list(dict.fromkeys([other if other != batch.opt else another, batch.opt]))


def _reason(err: BaseException) -> str:
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(err).__name__
