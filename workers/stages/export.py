"""Export: the source as one ONNX file, checked against the source."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import ExportedProgram

from farm.errors import ExportDiverged, InvalidModel
from farm.specs import ExportParams, Profile, SourceFormat, TensorSpec
from workers import fixing, floats, graphs, opsets, references
from workers.backends.ort import OrtModel
from workers.batch import Batch, Shapes
from workers.eager import SYMBOL, EagerModel, axis_names, input_names, output_names
from workers.measure.difference import NO_DIFFERENCE, Difference, difference
from workers.modern import described, is_modern, modernised
from workers.normal import normalised
from workers.profiles import resolve_profiles
from workers.samples import Runnable, random_arrays
from workers.savedmodel import SavedModelSource
from workers.stages import Stage, StageResult
from workers.torchscript import TorchScriptSource

#: Every runtime of the farm reads it, and Q/DQ may have fp16 scales in it.
EXPORT_OPSET = 20
#: A larger error, as a share of the output's largest magnitude, isn't rounding any more.
TOLERANCE = 1e-3
#: Of sources that compute in these, which frameworks round in other places: 16 steps of the type.
HALF_TOLERANCES = {"float16": 2.0**-6, "bfloat16": 2.0**-3}
#: Where a profile allows many, this batch size is enough to show that the batch is dynamic.
SMALL_BATCH = 2
SEED = 0

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
    return StageResult(outputs={"onnx": target}, facts=_facts(model, check))


def _facts(model: onnx.ModelProto, check: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": graphs.specs_as_json(graphs.input_specs(model)),
        "outputs": graphs.specs_as_json(graphs.output_specs(model)),
        "opset": graphs.opset_of(model),
        "parameters": graphs.parameter_count(model),
        "check": check,
    }


def _from_program(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    program = references.program(stage.inputs["source"], params)
    assert program is not None
    stage.progress("export", None)
    source = EagerModel(program)  # before the exporter, which narrows its axes' ranges
    model = normalised(_to_onnx(program))
    _name_axes(model)
    if params.fixed_inputs:
        model = fixing.folded(model)
    graphs.keep_axis_ranges(model, source.axis_ranges)
    graphs.check_model(model)
    graphs.save_model(model, target)
    inputs = graphs.input_specs(model)
    profiles = resolve_profiles(inputs, params.profiles, graphs.axis_ranges(model))
    stage.progress("check", None)
    tolerance = _tolerance(model)
    return model, _compare(source, _session(stage, target), inputs, profiles, tolerance)


def _tolerance(model: onnx.ModelProto) -> float:
    return max(HALF_TOLERANCES.get(name, TOLERANCE) for name in floats.float_types(model) or [""])


def _from_torchscript(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    source = TorchScriptSource(stage.inputs["source"], params.fixed_inputs)
    specs = source.input_specs(params.profiles)
    stage.progress("export", None)
    folder = stage.workdir / "exported"
    folder.mkdir()
    profile = resolve_profiles(specs, params.profiles)[0]
    model = source.to_onnx(specs, profile, folder / "model.onnx", opset=EXPORT_OPSET)
    shutil.rmtree(folder)
    if params.fixed_inputs:
        model = fixing.folded(model)
    graphs.check_model(model)
    modern = modernised(model)
    graphs.save_model(modern, target)
    profiles = resolve_profiles(graphs.input_specs(modern), params.profiles)
    stage.progress("check", None)
    tolerance = _tolerance(modern)
    return modern, _compare(source, _session(stage, target), specs, profiles, tolerance)


def _from_savedmodel(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("load", None)
    source = SavedModelSource(stage.inputs["source"], stage.workdir)
    stage.progress("export", None)
    model = described(source.to_onnx())
    if params.fixed_inputs:
        model = fixing.fixed_model(model, params.fixed_inputs)
    graphs.check_model(model)
    upgraded = _upgraded(model)
    graphs.save_model(upgraded, target)
    inputs = graphs.input_specs(upgraded)
    profiles = resolve_profiles(inputs, params.profiles)
    stage.progress("check", None)
    reference = references.savedmodel(source, params.fixed_inputs)
    return upgraded, _compare(reference, _session(stage, target), inputs, profiles)


def _from_onnx(stage: Stage, params: ExportParams, target: Path) -> Exported:
    stage.progress("check", None)
    source = stage.inputs["source"]
    file, given = graphs.read_model(source, stage.workdir)
    model = described(given)
    original = references.onnx_model(file, model, params.fixed_inputs, stage.workdir)
    if params.fixed_inputs:
        graphs.load_weights(model, file)
        model = fixing.fixed_model(model, params.fixed_inputs)
    graphs.check_model(model)
    inputs = graphs.input_specs(model)
    profiles = resolve_profiles(inputs, params.profiles, graphs.axis_ranges(model))
    is_new = graphs.opset_of(model) >= graphs.MIN_OPSET and is_modern(model)
    if is_new and model is given:
        for shapes in check_shapes(inputs, profiles):
            original.run(random_arrays(inputs, shapes, seed=SEED))
        if file != source and graphs.weight_bytes(model) <= graphs.MAX_PROTO_BYTES:
            graphs.load_weights(model, file)  # one file is simpler for all stages after this
            graphs.save_model(model, target)
        else:
            shutil.copyfile(source, target)
        return model, {"reason": "the source is ONNX and was taken as it is"}
    stage.progress("upgrade", None)
    graphs.load_weights(model, file)
    upgraded = _upgraded(model)
    graphs.save_model(upgraded, target)
    tolerance = _tolerance(upgraded)
    return upgraded, _compare(original, _session(stage, target), inputs, profiles, tolerance)


def _session(stage: Stage, path: Path) -> OrtModel:
    file, model = graphs.read_model(path, stage.workdir)
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
    opset = graphs.opset_of(model)
    if opset >= graphs.MIN_OPSET:
        return modernised(model)
    print(f"upgrading from opset {opset} to {graphs.MIN_OPSET}", flush=True)
    modern = modernised(opsets.upgraded(model, graphs.MIN_OPSET))
    graphs.check_model(modern)
    return modern


def _name_axes(model: onnx.ModelProto) -> None:
    """Call the batch ``batch`` and other axes by their input, as ``EagerModel`` does."""
    graph = model.graph
    names = axis_names(
        {
            value.name: [graphs.axis_of(dim) for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
    )
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = SYMBOL.sub(
                    lambda match: names.get(match[0], match[0]), dim.dim_param
                )


def _compare(
    expected: Runnable,
    actual: OrtModel,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    total: Difference = NO_DIFFERENCE
    for number, shapes in enumerate(check_shapes(inputs, profiles)):
        arrays = random_arrays(inputs, shapes, seed=SEED + number)
        total = total.merged(difference(expected.run(arrays), actual.run(arrays)))
    why = total.beyond(tolerance)
    if why:
        raise ExportDiverged(
            f"the ONNX graph's outputs aren't the source's: {why}",
            hint="put the model in eval mode before torch.export, and check for random operators",
        )
    batches = _batches(inputs, profiles)
    return {
        "max_abs_error": total.max_abs_error,
        "max_rel_error": total.max_rel_error,
        "batches": batches,
    }


def _batches(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> list[int]:
    """The batch sizes that ``check_shapes`` chooses."""
    return [size for profile in profiles for size in _batch_sizes(Batch.of(inputs, profile))]


def _batch_sizes(batch: Batch) -> list[int]:
    if not batch.is_dynamic:
        return [batch.opt]
    other = max(batch.min, min(SMALL_BATCH, batch.max))
    another = batch.min if batch.min != batch.opt else batch.max
    return list(dict.fromkeys([other if other != batch.opt else another, batch.opt]))


def check_shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> list[Shapes]:
    """The shapes to check at: each profile's, at two batch sizes where the batch is dynamic."""
    chosen: list[Shapes] = []
    for profile in profiles:
        batch = Batch.of(inputs, profile)
        chosen += [batch.at(profile, size) for size in _batch_sizes(batch)]
    return chosen


def _reason(err: BaseException) -> str:
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(err).__name__
