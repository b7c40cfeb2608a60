"""Builds a plan from a typed graph."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import EngineBuildFailed
from farm.reports.layers import Layer, LayerTensor
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime
from farm.specs.shapes import Profile, ShapeRange, ValueRange
from farm.stages import ReportProgress
from workers.backends.trt import inspector, parsed
from workers.backends.trt import timing_cache as cache
from workers.backends.trt.inspector import Inspected
from workers.backends.trt.interface import Interface, of_network
from workers.backends.trt.options import set_capability, set_options
from workers.backends.trt.timing_cache import TimingCacheUse

if TYPE_CHECKING:
    # TensorRT-RTX has the same classes; members that only one of the two has are probed, so untyped.
    import tensorrt as types
    from onnx import ModelProto
from workers.backends.trt.library import (
    collecting_log,
    failure,
    load_plugins,
    load_runtime,
    plain,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialised engine, and how it was built."""

    data: bytes
    runtime_version: str
    layers: tuple[Layer, ...]  #: of the network, before the builder fuses them
    interface: Interface  #: inputs and outputs of the network
    build_s: float
    timing_cache: TimingCacheUse | None  #: None if the runtime or the options have none
    inspected: Inspected | None  #: None if the engine can't be read back


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's garbage collector from running inside TensorRT.

    Otherwise an earlier builder in a reference cycle (as in a failed build's traceback) could be deleted
    while the next is created: both take the same lock, and the thread deadlocks.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def build_plan(
    runtime: Runtime,
    onnx: Path,
    profiles: Sequence[Profile],
    compute_capability: str,
    options: BuilderOptions,
    report: ReportProgress,
    *,
    model: ModelProto | None = None,
    timing_cache: bytes = b"",
    plugins: Sequence[Path] = (),
) -> Plan:
    """Build a strongly typed engine from a typed ONNX file.

    TensorRT-RTX builds ahead of time for ``compute_capability``; classic TensorRT builds for the
    GPU that the worker is pinned to, and ignores it.

    Parameters:
        model: the file's graph, to check the parsed network against.
        timing_cache: classic TensorRT's earlier timings on such a GPU, serialised.
        plugins: libraries to load, verified by the caller.

    Raises:
        EngineBuildFailed: has the builder's own reason and what to do about it.
    """
    build = _parsed(runtime, onnx, model, plugins, report)
    config = _configured(build, profiles, compute_capability, options, report)
    # TensorRT-RTX builds without a GPU: it times nothing, its timing cache only has names, and its
    # engines can't be loaded there.
    on_gpu = runtime is Runtime.TENSORRT
    if on_gpu:  # otherwise the inspector only shows names
        config.profiling_verbosity = build.trt.ProfilingVerbosity.DETAILED
    cached = on_gpu and options.timing_cache
    timings = cache.start(config, timing_cache) if cached else None
    report("build", None)
    data, build_s = _serialized(build, config)
    report("inspect", None)
    inspect = partial(inspector.inspect, build.trt, build.log, host_code=options.version_compatible)
    layers = map(build.network.get_layer, range(build.network.num_layers))
    return Plan(
        data=data,
        runtime_version=str(build.trt.__version__),
        layers=tuple(_layer(one) for one in layers),
        interface=of_network(build.network),
        build_s=build_s,
        timing_cache=cache.finish(config, timings) if timings else None,
        inspected=inspect(data) if on_gpu else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Build:
    """A network to build, and the objects that must outlive it: its parser holds weights."""

    trt: Any
    log: Any
    builder: types.Builder
    network: types.INetworkDefinition
    parser: types.OnnxParser


def _parsed(
    runtime: Runtime,
    onnx: Path,
    model: ModelProto | None,
    plugins: Sequence[Path],
    report: ReportProgress,
) -> _Build:
    trt = load_runtime(runtime)
    log = collecting_log(trt)
    builder: types.Builder = trt.Builder(log)
    # After the builder: the plugin registry writes to the first builder's log.
    load_plugins(trt, log, plugins)
    network: types.INetworkDefinition = builder.create_network(_network_flags(trt))
    parser: types.OnnxParser = trt.OnnxParser(network, log)
    report("parse", None)
    _parse(parser, onnx, log)
    if model is not None:
        parsed.check_attributes(trt, network, model)
    return _Build(trt=trt, log=log, builder=builder, network=network, parser=parser)


def _configured(
    build: _Build,
    profiles: Sequence[Profile],
    compute_capability: str,
    options: BuilderOptions,
    report: ReportProgress,
) -> types.IBuilderConfig:
    config: types.IBuilderConfig = build.builder.create_builder_config()
    set_capability(build.trt, config, compute_capability)
    set_options(build.trt, config, options)
    for profile in profiles:
        _add_profile(build, config, profile)
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _phase_monitor(build.trt, report)
    return config


def _serialized(build: _Build, config: types.IBuilderConfig) -> tuple[bytes, float]:
    """The engine, and the builder's time in seconds."""
    start = time.monotonic()
    plan = build.builder.build_serialized_network(build.network, config)
    if plan is None:
        raise failure(build.log, "the builder gave no reason")
    return bytes(plan), time.monotonic() - start


def combine_timing_caches(newest: bytes, mine: bytes) -> tuple[bytes, int | None] | None:
    """Merge two serialised timing caches of this GPU and TensorRT; also return the number of entries.

    None if mine doesn't match the newest.
    """
    trt = load_runtime(Runtime.TENSORRT)
    builder: types.Builder = trt.Builder(collecting_log(trt))
    return cache.combine(builder.create_builder_config(), newest, mine)


def _layer(layer: types.ILayer) -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    return Layer(
        name=layer.name,
        type=str(layer.type).rpartition(".")[2],
        inputs=[_tensor(tensor) for tensor in inputs if tensor is not None],
        outputs=[_tensor(tensor) for tensor in outputs if tensor is not None],
        operators=inspector.operators_of(layer.metadata),
    )


def _tensor(tensor: types.ITensor) -> LayerTensor:
    shape: list[int] | None
    try:
        shape = [int(tensor.shape[axis]) for axis in range(len(tensor.shape))]
    except ValueError:  # its rank isn't known
        shape = None
    return LayerTensor(name=tensor.name, type=tensor.dtype.name.lower(), shape=shape)


def _network_flags(trt: Any) -> int:
    """Strong typing, from the enum: its bit is 1 in TensorRT 10 and 0 in RTX."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _parse(parser: types.OnnxParser, onnx: Path, log: Any) -> None:
    # From the file, not from bytes: otherwise the parser can't find external weights.
    if parser.parse_from_file(str(onnx)):
        return
    reasons = [_parser_reason(parser.get_error(index)) for index in range(parser.num_errors)]
    raise failure(log, "; ".join(reasons) or "the ONNX parser gave no reason", "can't read")


def _parser_reason(error: types.ParserError) -> str:
    where = ""
    if hasattr(error, "node_operator") and error.node_operator():
        where = f" (operator {error.node_operator()}, node {error.node_name()!r})"
    return f"{plain(error.desc())[:300]}{where}"


def _add_profile(build: _Build, config: types.IBuilderConfig, profile: Profile) -> None:
    native: types.IOptimizationProfile = build.builder.create_optimization_profile()
    given = map(build.network.get_input, range(build.network.num_inputs))
    sizes = {tensor.name for tensor in given if tensor.is_shape_tensor}
    for name, shapes in profile.items():
        if name in sizes:
            values = _size_values(name, shapes)
            native.set_shape_input(name, list(values.min), list(values.opt), list(values.max))
        # Inputs other than data have a known shape and need no profile.
        if name not in sizes or shapes.min != shapes.max:
            low, mid, high = (
                build.trt.Dims(shape) for shape in (shapes.min, shapes.opt, shapes.max)
            )
            native.set_shape(name, low, mid, high)
    if config.add_optimization_profile(native) < 0:
        raise failure(build.log, f"the profile {dict(profile)} was refused")


def _size_values(name: str, shapes: ShapeRange) -> ValueRange:
    if shapes.values is None:
        raise EngineBuildFailed(
            f"input {name!r} is a shape input, and TensorRT must know the range of its values",
            hint=f"fix them with --fix {name}=VALUE; or provide samples that contain {name!r}, whose values "
            "are used; or give a range in the profile (REST): "
            f'{{"{name}": {{…, "values": {{"min": […], "opt": […], "max": […]}}}}}}',
        )
    return shapes.values


def _phase_monitor(trt: Any, report: ReportProgress) -> Any:
    """Create a monitor that reports the outermost phase and the time since the start.

    It reports no share: most of a build is a single step without reports.
    """
    start = time.monotonic()

    class PhaseMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, _steps: int) -> None:
            if parent is None:
                report(f"build: {name}, {time.monotonic() - start:.0f} s", None)

        def step_complete(self, _phase: str, _step: int) -> bool:
            return True

        def phase_finish(self, _phase: str) -> None:
            return None

    return PhaseMonitor()
