"""The build stage: prepares the graph, has the runtime build it, and reports the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from farm.errors import PrecisionMissed
from farm.reports.layers import LayerReport
from farm.reports.records import tensors
from farm.specs.roles import Role
from farm.specs.runtime import TENSORRTS, Runtime
from farm.specs.shapes import Profile
from farm.stages import BuildFacts, BuildParams
from workers.graphs import files, floats
from workers.graphs.compute import Compute, compute_of
from workers.graphs.interface import axis_ranges, input_specs
from workers.inputs.batch import Shapes
from workers.inputs.profiles import (
    resolve_profiles,
    shapes_at,
)
from workers.report import engine_types, layers
from workers.stages.base import Stage, StageResult
from workers.stages.build import aotinductor, torchscript
from workers.stages.build.made import Made, Said, interface_of, of_engine, report_of
from workers.stages.build.onnxruntime import build_graph
from workers.stages.build.prepare import bytes_cast_first, in_types_of, settled
from workers.stages.build.tensorrt import build_plan


def run(stage: Stage) -> StageResult:
    """Write ``engine``, its layer report ``layers``, and classic TensorRT's timing cache, from ``typed``;
    for int8 on CPUs, also from ``onnx`` and ``calibration``.

    TorchScript and AOTInductor packages are built from ``source``.

    Raises:
        PrecisionMissed: nothing in the graph computes in the engine's precision.
        EngineBuildFailed: has the runtime's reason.
        ProfileMismatch: the profiles don't fit the graph's inputs.
    """
    params = stage.params
    assert isinstance(params, BuildParams)
    if params.target.runtime is Runtime.TORCHSCRIPT:
        return torchscript.build(stage, params)
    if params.target.runtime is Runtime.AOTINDUCTOR:
        return aotinductor.build(stage, params)
    graph = _prepared(stage, params)
    made, said = _built(stage, params, graph)
    interface = interface_of(made, graph.model, graph.typed)
    report = report_of(made, graph.model, graph.profiles, said, interface)
    facts = _facts(params, graph, made, report, interface.differences)
    if made.provider:
        facts = facts.model_copy(update={"provider": made.provider})
    written = layers.write(report, stage.workdir / "layers.json")
    outputs: dict[str, Path] = {Role.ENGINE: made.engine, Role.LAYERS: written}
    if made.timing_cache:
        facts = facts.model_copy(update={"timing_cache": made.timing_cache.facts()})
        outputs[Role.TIMING_CACHE] = stage.workdir / "timing.cache"
        outputs[Role.TIMING_CACHE].write_bytes(made.timing_cache.data)
    return StageResult(outputs=outputs, facts=facts)


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The typed graph as adapted to its runtime, and the shapes it is built for."""

    file: Path
    model: onnx.ModelProto  #: the model in the file
    typed: onnx.ModelProto  #: as the previous stage made it
    narrowed: list[str]
    profiles: Sequence[Profile]
    compute: Compute

    @property
    def opt(self) -> Shapes:
        return shapes_at(self.profiles[0], "opt")


def _prepared(stage: Stage, params: BuildParams) -> _Graph:
    file, typed = files.read_model(stage.inputs[Role.TYPED], stage.workdir)
    file, model, narrowed = in_types_of(params, stage.workdir, file, typed)
    profiles = resolve_profiles(input_specs(model), params.profiles, axis_ranges(model))
    if params.target.runtime in TENSORRTS:
        file, model = settled(stage, file, model, profiles)
    compute = compute_of(model, shapes_at(profiles[0], "opt"))
    layers.check_precision(params.precision, compute)
    if params.target.runtime is Runtime.TENSORRT_RTX:
        engine_types.check_rtx(params.precision, compute, params.compute_capability)
    return _Graph(
        file=file, model=model, typed=typed, narrowed=narrowed, profiles=profiles, compute=compute
    )


def _built(stage: Stage, params: BuildParams, graph: _Graph) -> tuple[Made, Said]:
    """The runtime's output, and what it reports about its types."""
    if params.target.runtime is Runtime.ONNXRUNTIME:
        made = build_graph(stage, params, graph.file, graph.model)
        return made, of_engine(params.precision, graph.compute, made, graph.model, graph.opt)
    file = bytes_cast_first(stage, graph.file, graph.model)
    made = build_plan(stage, params, file, graph.model, graph.profiles)
    try:
        said = of_engine(params.precision, graph.compute, made, graph.model, graph.opt)
    except PrecisionMissed as err:
        # The builder's choices vary, most of all on a busy machine.
        print(f"{err.detail}: building it again")
        made = build_plan(stage, params, file, graph.model, graph.profiles)
        said = of_engine(params.precision, graph.compute, made, graph.model, graph.opt)
    return made, said


def _facts(
    params: BuildParams,
    graph: _Graph,
    made: Made,
    report: LayerReport,
    differences: Sequence[str],
) -> BuildFacts:
    return BuildFacts(
        runtime=str(params.target.runtime),
        runtime_version=made.runtime_version,
        compute_capabilities=list(made.compute_capabilities),
        layers=len(made.layers),
        compute=report.compute,
        build_s=round(made.build_s, 3),
        engine_bytes=made.engine.stat().st_size,
        inputs=tensors(report.inputs),
        outputs=tensors(report.outputs),
        differences=list(differences),
        profiles=list(graph.profiles),
        options=params.options,
        float_types=floats.float_types(graph.model),
        narrowed=graph.narrowed,
    )
