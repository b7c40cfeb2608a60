"""Builds ONNX Runtime engines: its optimised graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from farm.errors import EngineBuildFailed
from farm.reports.provider import ProviderChoice
from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.roles import Role
from farm.stages import BuildParams
from workers.backends.ort import cpu, cuda, provider
from workers.graphs import attention, casting, files, floats, shapes
from workers.graphs.interface import axis_ranges, input_specs
from workers.graphs.normal import normalised
from workers.graphs.walk import all_nodes
from workers.inputs.batch import Arrays, Batch
from workers.inputs.profiles import (
    resolve_profiles,
)
from workers.inputs.samples import samples_for
from workers.quantize import half_weights, integer_products, saturation
from workers.quantize.cpu_integers import Ranges, integer_graph
from workers.quantize.ranges import fitting
from workers.report import layers
from workers.stages.base import Stage
from workers.stages.build import tuning
from workers.stages.build.made import Made


def build_graph(stage: Stage, params: BuildParams, file: Path, model: onnx.ModelProto) -> Made:
    stage.progress("build", None)
    on_cpu = params.target.gpu == CPU
    if on_cpu and params.precision is Precision.INT8:
        file = _in_integers(stage, params)
    if on_cpu:
        file = saturation.exact_file(file, stage.workdir)
        file = _in_fp32(file, stage.workdir)
    # Folding may widen fp16 weights to fp32. External weights must also be included.
    may_be_large = files.is_large(model) or 2 * files.weight_bytes(model) > files.MAX_PROTO_BYTES
    built = _written(stage, "engine", file, is_large=may_be_large, on_cpu=on_cpu)
    choice: ProviderChoice | None = None
    if not on_cpu:
        built, choice = _fastest(stage, params, file, model, built, is_large=may_be_large)
    made, folder = built.model, built.folder
    if on_cpu:
        layers.check_integer_kernels(made, params.precision)
        integer_products.refuse_saturation(made, folder)
    result = Made(
        engine=stage.workdir / "engine.onnx",
        runtime_version=cpu.VERSION,
        compute_capabilities=() if on_cpu else (params.compute_capability,),
        build_s=built.build_s,
        provider=choice,
        layers=layers.of_onnx(made),
        layers_source="the engine: a graph that ONNX Runtime has optimised",
        optimised=shapes.outline_of(made),
        fusions=layers.fused_by_onnxruntime(made, model),
    )
    if on_cpu and half_weights.has_halves(model):
        files.load_weights(made, folder / "model.onnx")
        kept = half_weights.keep_in_halves(made)
        print(f"{kept} weights are kept in fp16, and computed with in fp32")
        files.save_model(made, result.engine)
    else:
        files.as_one_file(folder, made, result.engine)
    return result


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A graph as ONNX Runtime has written it, to ``model.onnx`` in a folder of its own."""

    folder: Path
    model: onnx.ModelProto  #: external weights are still in their files
    build_s: float
    fused_attention: int = 0

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"

    def save(self) -> None:
        onnx.save(self.model, str(self.file))


def _written(
    stage: Stage, name: str, file: Path, *, is_large: bool, on_cpu: bool, fused_attention: int = 0
) -> _Written:
    folder = stage.workdir / name
    folder.mkdir()
    build = cpu.build_engine if on_cpu else cuda.build_engine
    built = build(file, folder / "model.onnx", weights_beside=is_large)
    written = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    # ONNX Runtime gives the casts it adds to bodies the same name, and then can't load its own file.
    model = normalised(written)
    result = _Written(
        folder=folder, model=model, build_s=built.build_s, fused_attention=fused_attention
    )
    if casting.merge_casts(model.graph) or model is not written:
        result.save()
    return result


def _fastest(
    stage: Stage,
    params: BuildParams,
    file: Path,
    model: onnx.ModelProto,
    plain: _Written,
    *,
    is_large: bool,
) -> tuple[_Written, ProviderChoice]:
    """The graph in its fastest form on this GPU, with the provider's options in its file."""
    stage.progress("time provider options", None)
    made = {False: plain}
    fused = _with_attention(stage, file, model, is_large=is_large)
    if fused is not None:
        made[True] = fused
    batch, arrays = _one_batch(stage, params, model)
    paths = {is_fused: one.file for is_fused, one in made.items()}
    tf32 = params.options.tf32
    way, choice = tuning.chosen(
        tuning.plain(tf32=tf32),
        tuning.changes(
            convolves=any(node.op_type == "Conv" for node in all_nodes(model.graph)),
            attends=fused is not None,
        ),
        tuning.Clock(
            load=partial(tuning.OnGpu, paths),
            arrays=arrays,
            tolerance=tuning.tolerance(params.precision, tf32=tf32),
        ),
        batch=batch,
    )
    best = made[way.fused]
    provider.keep_options(best.model, way.options)
    best.save()
    return best, choice.model_copy(update={"fused_attention": best.fused_attention})


def _with_attention(
    stage: Stage, file: Path, model: onnx.ModelProto, *, is_large: bool
) -> _Written | None:
    """The graph with its attention fused; None if it has none, or the runtime can't build that."""
    fused, count = attention.fused(model)
    if not count:
        return None
    # Large weights are found beside the graph.
    path = (file.parent if files.is_large(model) else stage.workdir) / "fused-attention.onnx"
    onnx.save(fused, str(path))
    try:
        return _written(
            stage, "fused", path, is_large=is_large, on_cpu=False, fused_attention=count
        )
    except EngineBuildFailed as err:
        print(f"attention stays as it is: {err.detail}", flush=True)
        return None


def _one_batch(stage: Stage, params: BuildParams, model: onnx.ModelProto) -> tuple[int, Arrays]:
    """The user's samples, or random ones, as one batch of the opt size."""
    inputs = input_specs(model)
    profile = resolve_profiles(inputs, params.profiles, axis_ranges(model))[0]
    batch = Batch.of(inputs, profile)
    samples, _ = samples_for(
        stage.inputs,
        inputs,
        profile,
        hold_out=params.hold_out,
        preprocess=params.preprocess,
        fixed=params.fixed_inputs,
    )
    return batch.opt, batch.repeated(samples, batch.opt)


def _in_fp32(file: Path, folder: Path) -> Path:
    """The same graph without fp16 inside: CPUs lack kernels for it."""
    model = onnx.load(str(file), load_external_data=False)
    if not floats.has_type(model, onnx.TensorProto.FLOAT16):
        return file
    files.load_weights(model, file)
    made = folder / "in-fp32.onnx"
    files.write_model(floats.in_fp32(model, kinds=[onnx.TensorProto.FLOAT16]), made)
    return made


def _in_integers(stage: Stage, params: BuildParams) -> Path:
    """The Q/DQ graph with the additions that integer kernels need, using ranges from the calibration data.

    Without data (a graph that came with its Q/DQ needs none), only the ranges in the graph are known.
    """
    quantized = _whole(stage, Role.TYPED)
    is_calibrated = Role.ONNX in stage.inputs
    ranges = _ranges(stage, params, quantized) if is_calibrated else _unknown
    file = stage.workdir / "integer.onnx"
    made = integer_graph(quantized, ranges, keep_levels=not is_calibrated)
    files.write_model(made, file)
    return file


def _unknown(names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 0.0)


def _ranges(stage: Stage, params: BuildParams, quantized: onnx.ModelProto) -> Ranges:
    stage.progress("measure ranges", None)
    given = _whole(stage, Role.ONNX)
    inputs = input_specs(given)
    source = floats.calibratable(given)
    profile = resolve_profiles(inputs, params.profiles, axis_ranges(source))[0]
    batch = Batch.of(inputs, profile)
    samples, _ = samples_for(
        stage.inputs,
        inputs,
        profile,
        hold_out=params.hold_out,
        preprocess=params.preprocess,
        fixed=params.fixed_inputs,
    )
    batches = partial(batch.split, samples, batch.opt, smallest=batch.min)
    return partial(fitting, source, quantized, batches, stage.workdir, batch=batch)


def _whole(stage: Stage, role: str) -> onnx.ModelProto:
    file, model = files.read_model(stage.inputs[role], stage.workdir)
    files.load_weights(model, file)
    return model
