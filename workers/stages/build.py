"""Build: the engine of one target from a typed ONNX graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from farm.errors import EngineBuildFailed, PrecisionMissed
from farm.formats.rtx_header import MalformedHeader, parse_header
from farm.reports.layers import Layer, LayerReport, MemoryView
from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.runtime import TENSORRTS, Runtime
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.stages import BuildParams
from workers import scripted
from workers.backends.ort import cpu, cuda
from workers.backends.trt import build as trt_build
from workers.backends.trt import interface as trt_interface
from workers.backends.trt import rtx_plan
from workers.backends.trt.inspector import Inspected
from workers.backends.trt.interface import Interface
from workers.backends.trt.rtx_plan import RtxPlan
from workers.backends.trt.timing_cache import TimingCacheUse
from workers.graphs import axes, casting, check, files, fixing, floats, shapes, walk
from workers.graphs.bytes_first import cast_first
from workers.graphs.compute import Compute, compute_of
from workers.graphs.interface import axis_ranges, input_specs, output_specs, specs_as_json
from workers.graphs.normal import normalised
from workers.inputs.batch import Batch, Shapes
from workers.inputs.profiles import (
    profiles_as_json,
    resolve_profiles,
    shapes_at,
)
from workers.inputs.samples import samples_for
from workers.quantize import half_weights, qat, saturation
from workers.quantize.cpu_integers import Ranges, integer_graph
from workers.quantize.ranges import largest
from workers.report import engine_types, layers, optimised
from workers.stages import Stage, StageResult

_INSPECTOR = "the engine, by TensorRT's inspector"
_PLAN = "the plan of TensorRT-RTX {version}, by the text in it"
_NETWORK = "the network, before the builder fused its layers"
_HEADER_HINT = (
    "report it with the job's log: this version of TensorRT-RTX writes its engines otherwise than the "
    "farm knows, and would do so again"
)
_MATRIX_PRODUCTS = ("MatMul", "Gemm")
_KEPT = (
    "its values leave the range of fp16, or no data reach it, so it was kept in fp32: choose a GPU with "
    "bf16 (sm_80 and later)"
)
#: What to do about a type that sm_75 hasn't, by what was asked for.
_FOR_TURING = defaultdict(
    lambda: _KEPT,
    {
        Precision.FP32: "choose fp16 or int8 for this GPU",
        Precision.BF16: "choose fp16 or int8 for this GPU",
    },
)


def run(stage: Stage) -> StageResult:
    """Write ``engine``, its layer report ``layers``, and what classic TensorRT has timed, from ``typed``;
    for int8 on CPUs with ``onnx`` and ``calibration``, too.

    TorchScript is built from ``source``.

    Raises:
        PrecisionMissed: if nothing in the graph computes in the engine's precision.
        EngineBuildFailed: with the runtime's reason.
        ProfileMismatch: if the profiles don't fit the graph's inputs.
    """
    params = stage.params
    assert isinstance(params, BuildParams)
    if params.target.runtime is Runtime.TORCHSCRIPT:
        return scripted.build(stage, params)
    file, typed = files.read_model(stage.inputs["typed"], stage.workdir)
    file, model, missing = _in_types_of(params, stage.workdir, file, typed)
    profiles = resolve_profiles(input_specs(model), params.profiles, axis_ranges(model))
    if params.target.runtime in TENSORRTS:
        file, model = _settled(stage, file, model, profiles)
    compute = compute_of(model, shapes_at(profiles[0], "opt"))
    layers.check_precision(params.precision, compute)
    if params.target.runtime is Runtime.TENSORRT_RTX:
        engine_types.check_rtx(params.precision, compute, params.compute_capability)
    if params.target.runtime is Runtime.ONNXRUNTIME:
        made = _build_graph(stage, params, file, model)
    else:
        file = _bytes_cast_first(stage, file, model)
        made = _build_plan(stage, params, file, model, profiles)
    opt = shapes_at(profiles[0], "opt")
    try:
        said = _of_engine(params.precision, compute, made, model, opt)
    except PrecisionMissed as err:
        if params.target.runtime not in TENSORRTS:
            raise
        # What the builder chooses isn't always the same, on a busy machine least of all.
        print(f"{err.detail}: built once more")
        made = _build_plan(stage, params, file, model, profiles)
        said = _of_engine(params.precision, compute, made, model, opt)
    interface = _interface(made, model, typed)
    report = _report(made, model, profiles, said, interface)
    facts = {
        "runtime": str(params.target.runtime),
        "runtime_version": made.runtime_version,
        "compute_capabilities": list(made.compute_capabilities),
        "layers": len(made.layers),
        "compute": report.compute.model_dump(mode="json"),
        "build_s": round(made.build_s, 3),
        "engine_bytes": made.engine.stat().st_size,
        "inputs": specs_as_json(report.inputs),
        "outputs": specs_as_json(report.outputs),
        "differences": list(interface.differences),
        "profiles": profiles_as_json(profiles),
        "options": params.options.model_dump(mode="json"),
        "float_types": floats.float_types(model),
        "narrowed": missing,
    }
    written = layers.write(report, stage.workdir / "layers.json")
    outputs = {"engine": made.engine, "layers": written}
    if made.timing_cache:
        facts["timing_cache"] = made.timing_cache.as_facts()
        outputs["timing_cache"] = stage.workdir / "timing.cache"
        outputs["timing_cache"].write_bytes(made.timing_cache.data)
    return StageResult(outputs=outputs, facts=facts)


def _in_types_of(
    params: BuildParams, folder: Path, file: Path, model: onnx.ModelProto
) -> tuple[Path, onnx.ModelProto, list[str]]:
    """The graph without the floating-point types that the target hasn't, and which these are.

    Its inputs and outputs of such a type become fp32, too. Those of fp16 stay: CPUs only lack its kernels.
    """
    missing = (
        [onnx.TensorProto.DOUBLE]
        if params.target.runtime in TENSORRTS
        else [onnx.TensorProto.BFLOAT16]
        if params.target.gpu == CPU and params.precision is not Precision.BF16
        else []
    )
    if not floats.has_type(model, *missing):
        return file, model, []
    names = [floats.NAMES[kind] for kind in missing]
    print(
        f"{params.target} has no {names[0]}: the engine computes in float32 there, and takes and gives it"
    )
    files.load_weights(model, file)
    made = floats.narrowed(model, kinds=missing)
    file = folder / "narrowed.onnx"
    files.write_model(made, file)
    return file, made, names


@dataclass(frozen=True, kw_only=True)
class _Made:
    engine: Path
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    build_s: float
    layers: Sequence[Layer]
    layers_source: str
    timing_cache: TimingCacheUse | None = None
    inspected: Inspected | None = None
    optimised: onnx.ModelProto | None = None  #: of ONNX Runtime
    read: RtxPlan | None = None  #: of TensorRT-RTX
    interface: Interface | None = None  #: where TensorRT has its own view of it
    fusions: Mapping[str, int] | None = None  #: where the layers don't tell

    @property
    def memory(self) -> MemoryView | None:
        told = self.inspected or self.read
        return told.memory if told else None


@dataclass(frozen=True, kw_only=True)
class _Said:
    """In which types the products compute, and who says so."""

    compute: Compute
    source: str
    found: int | None = None  #: how many of the products the engine names


def _of_engine(
    precision: Precision, compute: Compute, made: _Made, model: onnx.ModelProto, opt: Shapes
) -> _Said:
    """What the engine itself says of the graph's products, where it can be read.

    Raises:
        PrecisionMissed
    """
    if made.inspected:
        found_in, found = engine_types.of_engine(compute, made.inspected.layers, model)
        said = _Said(compute=found_in, source="inspector", found=found)
    elif made.read:
        found_in, found = engine_types.of_plan(compute, made.read)
        said = _Said(compute=found_in, source="plan", found=found)
    elif made.optimised:
        found_in = optimised.compute_of_engine(made.optimised, opt, compute)
        return _Said(compute=found_in, source=optimised.SOURCE)
    else:
        return _Said(compute=compute, source="graph")
    total = len(compute.products)
    print(f"{said.found} of {total} convolutions and matrix products found in the engine's layers")
    engine_types.check_engine(precision, said.compute)
    return said


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """Inputs and outputs as the engine has them."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    differences: Sequence[str]  #: from those of the typed graph


def _interface(made: _Made, model: onnx.ModelProto, typed: onnx.ModelProto) -> _Ends:
    """What the runtime has, else what the graph has that it was built from, beside the typed graph's."""
    inputs, outputs = input_specs(model), output_specs(model)
    if made.interface is not None:
        inputs, outputs = made.interface.inputs, made.interface.outputs
    taken, other = trt_interface.named(inputs, input_specs(typed))
    given, others = trt_interface.named(outputs, output_specs(typed))
    differences = [*(f"input {one}" for one in other), *(f"output {one}" for one in others)]
    for one in differences:
        print(f"otherwise than in the model: {one}")
    return _Ends(inputs=taken, outputs=given, differences=differences)


def _report(
    made: _Made, model: onnx.ModelProto, profiles: Sequence[Profile], said: _Said, ends: _Ends
) -> LayerReport:
    more: dict[str, object] = {} if made.fusions is None else {"fusions": made.fusions}
    return layers.report(
        made.layers,
        said.compute,
        model,
        compute_source=said.source,
        found=said.found,
        source=made.layers_source,
        memory=made.memory,
        profiles=profiles,
        inputs=ends.inputs,
        outputs=ends.outputs,
        **more,
    )


def _build_graph(stage: Stage, params: BuildParams, file: Path, model: onnx.ModelProto) -> _Made:
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
    # Folding may widen fp16 weights to fp32. And what stays outside must come along.
    may_be_large = files.is_large(model) or 2 * files.weight_bytes(model) > files.MAX_PROTO_BYTES
    built = build(file, folder / "model.onnx", weights_beside=may_be_large)
    written = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    # ONNX Runtime calls the casts that it adds to bodies alike, and then can't load what it wrote.
    made = normalised(written)
    if casting.merge_casts(made.graph) or made is not written:
        onnx.save(made, str(folder / "model.onnx"))
    if on_cpu:
        layers.check_integer_kernels(made, params.precision)
        saturation.refuse_saturation(made, folder)
    result = _Made(
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
    """The same graph without fp16 inside: CPUs have no kernels for it."""
    model = onnx.load(str(file), load_external_data=False)
    if not floats.has_type(model, onnx.TensorProto.FLOAT16):
        return file
    files.load_weights(model, file)
    made = folder / "in-fp32.onnx"
    files.write_model(floats.in_fp32(model, kinds=[onnx.TensorProto.FLOAT16]), made)
    return made


def _in_integers(stage: Stage, params: BuildParams) -> Path:
    """The Q/DQ graph with what integer kernels need, in ranges that the calibration data have.

    Without data, as a graph that came with its Q/DQ needs none, no range is known that isn't in it.
    """
    quantized = _whole(stage, "typed")
    is_calibrated = "onnx" in stage.inputs
    ranges = _ranges(stage, params, quantized) if is_calibrated else _unknown
    file = stage.workdir / "integer.onnx"
    made = integer_graph(quantized, ranges, keep_levels=not is_calibrated)
    files.write_model(made, file)
    return file


def _unknown(names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 0.0)


def _ranges(stage: Stage, params: BuildParams, quantized: onnx.ModelProto) -> Ranges:
    stage.progress("measure ranges", None)
    given = _whole(stage, "onnx")
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


def _build_plan(
    stage: Stage,
    params: BuildParams,
    file: Path,
    model: onnx.ModelProto,
    profiles: Sequence[Profile],
) -> _Made:
    _refuse_given_outputs(model)
    _refuse_own_operators(params, model)
    if params.compute_capability == "sm_75":
        refuse_on_turing(model, params.precision)
    qat.refuse_asymmetric(model)
    known = stage.inputs.get("timing_cache")
    plan = trt_build.build_plan(
        params.target.runtime,
        file,
        profiles,
        params.compute_capability,
        params.options,
        stage.progress,
        model=model,
        timing_cache=known.read_bytes() if known else b"",
        plugins=stage.plugins(params.options),
    )
    read = None
    if params.target.runtime is Runtime.TENSORRT_RTX:
        check_header(plan.data, plan.runtime_version, params.compute_capability)
        read = rtx_plan.read_plan(plan.data)
        if read is None:
            print("the plan's text can't be read: its types are those of the typed graph")
    engine = stage.workdir / "engine.plan"
    engine.write_bytes(plan.data)
    made, source = plan.layers, _NETWORK
    if plan.inspected:
        made, source = plan.inspected.layers, _INSPECTOR
    elif read:
        made, source = read.layers, _PLAN.format(version=read.version or plan.runtime_version)
    return _Made(
        engine=engine,
        runtime_version=plan.runtime_version,
        compute_capabilities=(params.compute_capability,),
        build_s=plan.build_s,
        layers=made,
        layers_source=source,
        timing_cache=plan.timing_cache,
        inspected=plan.inspected,
        read=read,
        interface=plan.inspected.interface if plan.inspected else plan.interface,
    )


def _refuse_own_operators(params: BuildParams, model: onnx.ModelProto) -> None:
    own = check.own_operators(model)
    if own:
        raise EngineBuildFailed(
            f"{params.target} lacks operators of the model that ONNX Runtime alone has: {', '.join(own)}",
            hint="build it for onnxruntime:cpu; or hand in the model before ONNX Runtime optimised or "
            "quantised it",
        )


def _refuse_given_outputs(model: onnx.ModelProto) -> None:
    given = {value.name for value in model.graph.input}
    through = [value.name for value in model.graph.output if value.name in given]
    if through:
        raise EngineBuildFailed(
            f"the output {through[0]!r} is the input of that name, which TensorRT can't give back",
            hint="leave that output out of the model: who calls it has the value; or give it another name",
        )


def _bytes_cast_first(stage: Stage, file: Path, model: onnx.ModelProto) -> Path:
    """The graph for TensorRT, which can do nothing with bytes but cast them."""
    names = cast_first(model)
    if not names:
        return file
    print(f"cast before they are moved: {', '.join(names)}", flush=True)
    return _written(stage, file, model, "cast-first.onnx")


def _settled(
    stage: Stage, file: Path, model: onnx.ModelProto, profiles: Sequence[Profile]
) -> tuple[Path, onnx.ModelProto]:
    """The graph with the sizes that the profiles leave no choice of, and without the branches that these
    rule out: TensorRT refuses some of what it must plan for any size."""
    names = axes.settle(model, profiles)
    if not names:
        return file, model
    print(f"with the one size that the profiles give axes of {', '.join(names)}", flush=True)
    has_branches = any(node.op_type == "If" for node in model.graph.node)
    if has_branches and not files.is_large(model):
        model = fixing.folded(model)
    return _written(stage, file, model, "settled.onnx"), model


def _written(stage: Stage, file: Path, model: onnx.ModelProto, name: str) -> Path:
    # Beside the weights, where they lie in files of their own.
    folder = stage.workdir if file in stage.inputs.values() else file.parent
    onnx.save(model, str(folder / name))
    return folder / name


def check_header(data: bytes, version: str, compute_capability: str) -> None:
    """Check that an engine is whole, of this runtime, and for exactly the asked capability.

    Raises:
        EngineBuildFailed: naming what its header says instead.
    """
    try:
        header = parse_header(data)
    except MalformedHeader as err:
        raise EngineBuildFailed(
            f"the engine's header can't be read: {err}", hint=_HEADER_HINT
        ) from err
    asked = (version, len(data), (compute_capability,))
    found = (header.version, header.bytes, header.compute_capabilities)
    if found != asked:
        raise EngineBuildFailed(
            f"the engine's header says {found}, and {asked} was asked for",
            hint=_HEADER_HINT,
        )


def refuse_on_turing(model: onnx.ModelProto, precision: Precision) -> None:
    """Refuse types that sm_75 builds wrongly or not at all, in the graph or in a body.

    Engines for it with bf16 have crashed, and dynamic fp32 matrix products have returned zeros.

    Raises:
        EngineBuildFailed: naming the operator.
    """
    types = shapes.types_of(model)
    for node in walk.all_nodes(model.graph):
        kinds = {types.get(name) for name in [*node.input, *node.output] if name}
        if onnx.TensorProto.BFLOAT16 in kinds:
            raise EngineBuildFailed(
                f"sm_75 has no bf16, which {node.op_type} {node.name!r} computes in",
                hint=_FOR_TURING[precision],
            )
        if node.op_type in _MATRIX_PRODUCTS and types.get(node.input[0]) == onnx.TensorProto.FLOAT:
            raise EngineBuildFailed(
                f"TensorRT can't multiply matrices in fp32 on sm_75: {node.op_type} {node.name!r}",
                hint=_FOR_TURING[precision],
            )
