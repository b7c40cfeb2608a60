"""Builds ONNX Runtime engines: its optimised graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnx

from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.roles import Role
from farm.stages import BuildParams
from workers.backends.ort import cpu, cuda
from workers.graphs import casting, files, floats, shapes
from workers.graphs.interface import axis_ranges, input_specs
from workers.graphs.normal import normalised
from workers.inputs.batch import Batch
from workers.inputs.profiles import (
    resolve_profiles,
)
from workers.inputs.samples import samples_for
from workers.quantize import half_weights, integer_products, saturation
from workers.quantize.cpu_integers import Ranges, integer_graph
from workers.quantize.ranges import largest
from workers.report import layers
from workers.stages.base import Stage
from workers.stages.build.made import Made


def build_graph(stage: Stage, params: BuildParams, file: Path, model: onnx.ModelProto) -> Made:
    stage.progress("build", None)
    folder = stage.workdir / "engine"
    folder.mkdir()
    on_cpu = params.target.gpu == CPU
    build = cpu.build_engine if on_cpu else cuda.build_engine
    if on_cpu and params.precision is Precision.INT8:
        file = _in_integers(stage, params)
    if on_cpu:
        file = saturation.exact_file(file, stage.workdir)
        file = _in_fp32(file, stage.workdir)
    # Folding may widen fp16 weights to fp32. External weights must also be included.
    may_be_large = files.is_large(model) or 2 * files.weight_bytes(model) > files.MAX_PROTO_BYTES
    built = build(file, folder / "model.onnx", weights_beside=may_be_large)
    written = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    # ONNX Runtime gives the casts it adds to bodies the same name, and then can't load its own file.
    made = normalised(written)
    if casting.merge_casts(made.graph) or made is not written:
        onnx.save(made, str(folder / "model.onnx"))
    if on_cpu:
        layers.check_integer_kernels(made, params.precision)
        integer_products.refuse_saturation(made, folder)
    result = Made(
        engine=stage.workdir / "engine.onnx",
        runtime_version=built.runtime_version,
        compute_capabilities=() if on_cpu else (params.compute_capability,),
        build_s=built.build_s,
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
        stage.inputs, inputs, profile, hold_out=params.hold_out, fixed=params.fixed_inputs
    )
    batches = list(batch.split(samples, batch.opt, smallest=batch.min))
    return partial(largest, source, quantized, batches, stage.workdir)


def _whole(stage: Stage, role: str) -> onnx.ModelProto:
    file, model = files.read_model(stage.inputs[role], stage.workdir)
    files.load_weights(model, file)
    return model
