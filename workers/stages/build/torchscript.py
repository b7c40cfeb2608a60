"""Builds TorchScript engines, without ONNX, and checks them against their source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from farm.errors import EngineBuildFailed, InvalidModel
from farm.reports.layers import LayerReport, ProductView
from farm.reports.records import tensors
from farm.specs.roles import Role
from farm.specs.shapes import Profile
from farm.specs.source import DataKind
from farm.stages import BuildFacts, BuildParams
from workers.backends import torchscript
from workers.backends.torchscript import Scripted, TorchScriptModel
from workers.graphs.compute import Compute
from workers.inputs.batch import Arrays, Batch, Shapes
from workers.inputs.profiles import resolve_profiles, shapes_at
from workers.inputs.samples import random_arrays, samples_for
from workers.measure.difference import difference
from workers.programs.eager import EagerModel
from workers.programs.program_weights import compute_of_program
from workers.report import layers
from workers.sources import reference
from workers.stages.base import Stage, StageResult

SEED = 0
#: A larger error, as a share of the output's largest magnitude, is more than rounding.
TOLERANCE = 1e-3


def build(stage: Stage, params: BuildParams) -> StageResult:
    """Write ``engine`` and its layer report ``layers`` from ``source``.

    Raises:
        EngineBuildFailed: it can't be expressed in TorchScript, or then behaves differently.
        ProfileMismatch: the profiles don't fit the program's inputs.
    """
    stage.progress("load", None)
    program = reference.program(stage.inputs[Role.SOURCE], params)
    assert program is not None
    source = EagerModel(program)
    profiles = resolve_profiles(source.input_specs, params.profiles, source.axis_ranges)
    stage.progress("build", None)
    engine = stage.workdir / "engine.pt"
    built = torchscript.build_engine(program, engine)
    stage.progress("check", None)
    check(source, TorchScriptModel(engine), _batches(stage, params, source, profiles))
    report = _report(source, built, compute_of_program(program), profiles)
    facts = BuildFacts(
        runtime=str(params.target.runtime),
        runtime_version=torchscript.VERSION,
        compute_capabilities=[],
        layers=len(built.layers),
        compute=report.compute,
        build_s=round(built.build_s, 3),
        engine_bytes=engine.stat().st_size,
        inputs=tensors(source.input_specs),
        outputs=tensors(source.output_specs),
        profiles=list(profiles),
        options=params.options,
    )
    written = layers.write(report, stage.workdir / "layers.json")
    return StageResult(outputs={Role.ENGINE: engine, Role.LAYERS: written}, facts=facts)


def _batches(
    stage: Stage, params: BuildParams, source: EagerModel, profiles: Sequence[Profile]
) -> Iterator[Arrays]:
    """The user's samples in batches of the smallest and the opt size, or else random ones at each profile's
    min and opt shapes: with one size, a batch that became fixed wouldn't show."""
    inputs = source.input_specs
    if stage.inputs.keys().isdisjoint((DataKind.CALIBRATION, DataKind.EVALUATION)):
        for profile in profiles:
            for shapes in (shapes_at(profile, "min"), shapes_at(profile, "opt")):
                yield random_arrays(inputs, shapes, seed=SEED, profile=profile)
        return
    samples, _ = samples_for(stage.inputs, inputs, profiles[0], fixed=params.fixed_inputs)
    batch = Batch.of(inputs, profiles[0])
    for size in dict.fromkeys((batch.min, batch.opt)):
        yield batch.repeated(samples, size)


def check(source: EagerModel, engine: TorchScriptModel, batches: Iterable[Arrays]) -> None:
    """Refuse an engine whose outputs for these batches aren't its source's.

    Raises:
        EngineBuildFailed: has the shapes.
    """
    for arrays in batches:
        shapes = {name: array.shape for name, array in arrays.items()}
        expected = source.run(arrays)
        try:
            found = difference(expected, engine.run(arrays))
        except InvalidModel as err:
            raise _diverged(shapes, str(err.__cause__).strip().splitlines()[-1][:200]) from err
        if why := found.beyond(TOLERANCE):
            raise _diverged(shapes, why)


def _diverged(shapes: Shapes, why: str) -> EngineBuildFailed:
    return EngineBuildFailed(
        f"TorchScript doesn't do what the source does at the shapes {shapes}: {why}",
        hint="use onnxruntime:cpu; for that size alone export the model with fixed shapes",
    )


def _report(
    source: EagerModel, built: Scripted, compute: Compute, profiles: Sequence[Profile]
) -> LayerReport:
    return LayerReport.model_validate(
        {
            "source": "the program that was compiled",
            "compute": compute.as_facts(),
            "products": [ProductView.model_validate(product) for product in compute.products],
            "layers": built.layers,
            "kinds": Counter(layer.type for layer in built.layers),
            "operators": len(built.layers),
            "inputs": source.input_specs,
            "outputs": source.output_specs,
            "profiles": profiles,
        }
    )
