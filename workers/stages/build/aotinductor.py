"""Builds AOTInductor packages from the program itself, without ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from farm.errors import InvalidData
from farm.reports.layers import Layer
from farm.specs.gpus import CPU
from farm.specs.precision import QUANTIZED, Precision
from farm.specs.roles import Role
from farm.specs.shapes import Profile
from farm.stages import BuildParams
from workers.backends.aotinductor import build as backend
from workers.backends.aotinductor import compiler
from workers.backends.aotinductor.layout import laid_out
from workers.backends.aotinductor.packages import chooses_layouts, packaged
from workers.graphs.compute import Compute
from workers.inputs.batch import Arrays, Batch, Shapes
from workers.inputs.profiles import shapes_at
from workers.inputs.samples import random_arrays, samples_for
from workers.programs.eager import EagerModel, given_to
from workers.programs.lowered import Lowered, Values, lowered, observed
from workers.programs.program_layers import layers_of
from workers.programs.program_weights import compute_of_program
from workers.quantize.program_products import EightBit, Kind
from workers.report import kernel_types, layers
from workers.stages.base import Stage, StageResult
from workers.stages.build.programs import FROM_PROGRAM, Built, load, recorded

SEED = 0
#: Half of fp16's largest: what data show isn't all that may come.
_BEYOND_FP16 = float(torch.finfo(torch.float16).max) / 2
#: Enough for the magnitudes of values, and for ranges.
_MOST_BATCHES = 64
_PROFILED = "a profiler: the kernels that ran"
_TYPES = {Precision.FP32: None, Precision.BF16: torch.bfloat16}


def build(stage: Stage, params: BuildParams) -> StageResult:
    """Write ``engine`` and its layer report ``layers`` from ``source``.

    Raises:
        EngineBuildFailed: it can't be compiled, or the package doesn't run in a fresh process.
        PrecisionMissed: none of its products can be quantised.
        ProfileMismatch: the profiles don't fit the program's inputs.
    """
    loaded = load(stage, params)
    program, source, profiles = loaded.program, loaded.source, loaded.profiles
    device = "cpu" if params.target.gpu == CPU else "cuda"
    of = backend.signature(
        source.input_specs,
        source.output_specs,
        profiles,
        tf32=params.options.tf32 and device == "cuda",
    )
    backend.choose_kernels(tf32=of.tf32)
    stage.progress("lower", None)
    placed = program if device == "cpu" else move_to_device_pass(program, "cuda:0")
    module = _module(stage, params, placed, source, profiles, device)
    compute = _compute(program, module)
    layers.check_precision(params.precision, compute)
    stage.progress("build", None)
    example = random_arrays(
        source.input_specs, _example_shapes(of, profiles[0]), seed=SEED, profile=profiles[0]
    )
    inputs = _tensors(source, example, device)
    if chooses_layouts(module, device):
        module = laid_out(module, inputs)
    opt = random_arrays(
        source.input_specs, shapes_at(profiles[0], "opt"), seed=SEED, profile=profiles[0]
    )
    made = packaged(module, inputs, opt, of, stage.workdir, stage.progress)
    half = "bf16" if params.precision == "bf16" else "fp16"
    built = Built(
        engine=made.path,
        build_s=made.build_s,
        version=backend.VERSION,
        runs_on=[compiler.INSTRUCTION_SET if device == "cpu" else params.compute_capability],
        compute=compute,
        layers=[_layer(*kernel, half) for kernel in made.kernels.items()] or layers_of(program),
        layers_source=_PROFILED if made.kernels else FROM_PROGRAM,
        ran=kernel_types.shares(made.kernels, half) if made.kernels else None,
        operators=sum(node.op == "call_function" for node in program.graph.nodes),
    )
    return recorded(stage, params, loaded, built)


def _module(
    stage: Stage,
    params: BuildParams,
    program: ExportedProgram,
    source: EagerModel,
    profiles: Sequence[Profile],
    device: str,
) -> Lowered:
    """The program as it is to be compiled: in the engine's type, and quantised."""
    dtype = _TYPES.get(params.precision, torch.float16)
    is_quantized = params.precision in QUANTIZED
    if is_quantized and Role.CALIBRATION not in stage.inputs:
        raise InvalidData(
            f"{params.precision} needs calibration data",
            hint="pass samples of the model's inputs: --calibration data.npz",
        )
    module: Lowered
    if dtype is None:
        module = lowered(program)
    else:
        found: Mapping[str, Values] = {}
        if dtype is torch.float16:
            batches = _batches(stage, params, source, profiles)
            given = (_tensors(source, arrays, device) for arrays in batches)
            found = observed(lowered(program).to(device), given)
        wide = _wide(found)
        if is_quantized:
            kind: Kind = "fp8" if params.precision is Precision.FP8 else "int8"
            module = EightBit(program, dtype, kind, found, wide=wide).eval()
            for name, why in module.left_out.items():
                print(f"{name} computes in fp16: {why}", flush=True)
        else:
            module = lowered(program, dtype, wide=wide)
    return module.to(device)


def _wide(found: Mapping[str, Values]) -> list[str]:
    wide = [name for name, values in found.items() if values.largest > _BEYOND_FP16]
    if wide:
        print(f"{len(wide)} values leave the range of fp16 and stay in fp32", flush=True)
    return wide


def _batches(
    stage: Stage, params: BuildParams, source: EagerModel, profiles: Sequence[Profile]
) -> Iterator[Arrays]:
    """The data for ranges and magnitudes: of the opt size, and one batch of the smallest."""
    inputs, profile = source.input_specs, profiles[0]
    samples, _ = samples_for(
        stage.inputs,
        inputs,
        profile,
        hold_out=params.hold_out,
        preprocess=params.preprocess,
        fixed=params.fixed_inputs,
        source=lambda: source,
    )
    batch = Batch.of(inputs, profile)
    yield batch.repeated(samples, batch.min)
    for number, arrays in enumerate(batch.split(samples, batch.opt, smallest=batch.min)):
        if number == _MOST_BATCHES:
            return
        yield arrays


def _example_shapes(of: backend.Signature, profile: Profile) -> Shapes:
    """The opt shapes, but at least 2 on a dynamic axis: a tracer takes smaller sizes for constants."""

    def size_of(name: str, axis: int, size: int) -> int:
        largest = of.largest[name][axis]
        return size if of.smallest[name][axis] == largest else max(size, min(2, largest))

    return {
        name: tuple(size_of(name, axis, size) for axis, size in enumerate(shape))
        for name, shape in shapes_at(profile, "opt").items()
    }


def _tensors(source: EagerModel, arrays: Arrays, device: str) -> list[torch.Tensor]:
    return [one.to(device) for one in given_to(source.input_specs, arrays)]


def _compute(program: ExportedProgram, module: Lowered) -> Compute:
    """The products in the types that the module gives them."""
    quantized = module.quantised if isinstance(module, EightBit) else ()
    kind = module.kind if isinstance(module, EightBit) else ""
    types = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    made = []
    for product in compute_of_program(program).products:
        if product.name in quantized:
            made.append(replace(product, type=kind))
        elif module.dtype is not None:
            is_wide = product.name in module.wide
            made.append(replace(product, type="fp32" if is_wide else types[module.dtype]))
        else:
            made.append(product)
    return Compute(products=made)


def _layer(name: str, microseconds: float, half: str) -> Layer:
    kind = kernel_types.type_of(name, half)
    return Layer(
        name=name[:200],
        type=f"{kind} product" if kind else "other",
        inputs=[],
        outputs=[],
        kernel=name[:200],
        microseconds=round(microseconds, 3),
    )
