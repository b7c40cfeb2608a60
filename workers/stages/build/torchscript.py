"""Builds TorchScript engines, without ONNX, and checks them against their source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from farm.errors import EngineBuildFailed, InvalidModel
from farm.specs.shapes import Profile
from farm.specs.source import DataKind
from farm.stages import BuildParams
from workers.backends import torchscript
from workers.backends.torchscript import TorchScriptModel
from workers.inputs.batch import Arrays, Batch, Shapes
from workers.inputs.profiles import shapes_at
from workers.inputs.samples import random_arrays, samples_for
from workers.measure.difference import difference
from workers.programs.eager import EagerModel
from workers.programs.program_weights import compute_of_program
from workers.stages.base import Stage, StageResult
from workers.stages.build.programs import Built, load, recorded

SEED = 0
#: A larger error, as a share of the output's largest magnitude, is more than rounding.
TOLERANCE = 1e-3


def build(stage: Stage, params: BuildParams) -> StageResult:
    """Write ``engine`` and its layer report ``layers`` from ``source``.

    Raises:
        EngineBuildFailed: it can't be expressed in TorchScript, or then behaves differently.
        ProfileMismatch: the profiles don't fit the program's inputs.
    """
    loaded = load(stage, params)
    stage.progress("build", None)
    engine = stage.workdir / "engine.pt"
    scripted = torchscript.build_engine(loaded.program, engine)
    stage.progress("check", None)
    batches = _batches(stage, params, loaded.source, loaded.profiles)
    check(loaded.source, TorchScriptModel(engine), batches)
    built = Built(
        engine=engine,
        build_s=scripted.build_s,
        version=torchscript.VERSION,
        runs_on=[],
        compute=compute_of_program(loaded.program),
        layers=scripted.layers,
        operators=len(scripted.layers),
    )
    return recorded(stage, params, loaded, built)


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
    samples, _ = samples_for(
        stage.inputs, inputs, profiles[0], preprocess=params.preprocess, fixed=params.fixed_inputs
    )
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
