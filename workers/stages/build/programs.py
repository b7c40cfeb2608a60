"""What engines that are built from the program itself, without ONNX, have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from farm.reports.layers import ComputeView, Layer, LayerReport, ProductView
from farm.reports.records import tensors
from farm.specs.roles import Role
from farm.specs.shapes import Profile
from farm.stages import BuildFacts, BuildParams
from workers.graphs.compute import Compute
from workers.inputs.profiles import resolve_profiles
from workers.programs.eager import EagerModel
from workers.report import layers
from workers.sources import reference
from workers.stages.base import Stage, StageResult

FROM_PROGRAM = "the program that was compiled"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A program, and the sizes its engine is built for."""

    program: ExportedProgram
    source: EagerModel
    profiles: Sequence[Profile]


def load(stage: Stage, params: BuildParams) -> Loaded:
    """Read the program in ``source``.

    Raises:
        InvalidModel
        ProfileMismatch: the profiles don't fit the program's inputs.
    """
    stage.progress("load", None)
    program = reference.program(stage.inputs[Role.SOURCE], params)
    assert program is not None
    source = EagerModel(program)
    profiles = resolve_profiles(source.input_specs, params.profiles, source.axis_ranges)
    return Loaded(program=program, source=source, profiles=profiles)


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and what is known of it."""

    engine: Path
    build_s: float
    version: str  #: of the runtime
    runs_on: Sequence[str]  #: compute capabilities, or an instruction set
    compute: Compute
    operators: int
    layers: Sequence[Layer]
    layers_source: str = FROM_PROGRAM
    ran: Mapping[str, float] | None = None  #: the products' time by type, where a profiler saw it


def recorded(stage: Stage, params: BuildParams, loaded: Loaded, built: Built) -> StageResult:
    """Write the layer report; return it, the engine and the facts."""
    source, compute = loaded.source, built.compute
    report = LayerReport(
        source=built.layers_source,
        compute=ComputeView.model_validate(compute.as_facts() | {"ran": built.ran}),
        products=[ProductView.model_validate(product) for product in compute.products],
        layers=list(built.layers),
        kinds=Counter(layer.type for layer in built.layers),
        operators=built.operators,
        inputs=list(source.input_specs),
        outputs=list(source.output_specs),
        profiles=list(loaded.profiles),
    )
    facts = BuildFacts(
        runtime=str(params.target.runtime),
        runtime_version=built.version,
        compute_capabilities=list(built.runs_on),
        layers=len(built.layers),
        compute=report.compute,
        build_s=round(built.build_s, 3),
        engine_bytes=built.engine.stat().st_size,
        inputs=tensors(source.input_specs),
        outputs=tensors(source.output_specs),
        profiles=list(loaded.profiles),
        options=params.options,
    )
    written = layers.write(report, stage.workdir / "layers.json")
    return StageResult(outputs={Role.ENGINE: built.engine, Role.LAYERS: written}, facts=facts)
