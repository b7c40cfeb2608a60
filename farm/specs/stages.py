"""The kinds of jobs, and the parameters of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    Field,
)

from farm.specs.gates import Gates
from farm.specs.options import BuilderOptions, Prune
from farm.specs.precision import CalibrationMethod, Precision
from farm.specs.runtime import Target
from farm.specs.shapes import FixedInputs, Profile
from farm.specs.source import Architecture, HoldOut, SourceFormat
from farm.specs.values import Value


class JobKind(StrEnum):
    """What a job does."""

    PRUNE = "prune"  #: source → the same program with some weights zero
    EXPORT = "export"  #: source → ONNX, checked against the source
    CAST = "cast"  #: ONNX → ONNX typed fp16 or bf16, or with int8 weights
    CALIBRATE = "calibrate"  #: ONNX + data → ONNX with explicit Q/DQ
    BUILD = "build"  #: typed ONNX → engine
    MEASURE = "measure"  #: engine → accuracy and latency


class PruneParams(Value):
    format: SourceFormat
    architecture: Architecture | None = None
    prune: Prune
    fixed_inputs: FixedInputs = {}


class ExportParams(Value):
    format: SourceFormat
    architecture: Architecture | None = None
    profiles: tuple[Profile, ...] = ()
    fixed_inputs: FixedInputs = {}


class CastParams(Value):
    precision: Literal[Precision.FP16, Precision.BF16, Precision.INT8_DYNAMIC]
    profiles: tuple[Profile, ...] = ()
    hold_out: HoldOut = None
    fixed_inputs: FixedInputs = {}


class CalibrateParams(Value):
    precision: Literal[Precision.INT8, Precision.FP8] = Precision.INT8
    method: CalibrationMethod = "entropy"
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    profiles: tuple[Profile, ...] = ()
    hold_out: HoldOut = None
    fixed_inputs: FixedInputs = {}


class BuildParams(Value):
    target: Target
    compute_capability: str  #: ``sm_89``, or ``cpu``
    precision: Precision
    profiles: tuple[Profile, ...] = ()
    options: BuilderOptions = BuilderOptions()
    format: SourceFormat | None = None  #: of the source, where the engine is built from it
    architecture: Architecture | None = None
    hold_out: HoldOut = None
    fixed_inputs: FixedInputs = {}


class MeasureParams(Value):
    """What to measure. Without a target the typed ONNX stands in for engines that can't run here."""

    precision: Precision
    target: Target | None = None
    format: SourceFormat
    architecture: Architecture | None = None
    profiles: tuple[Profile, ...] = ()
    options: BuilderOptions = BuilderOptions()  #: that the engine was built with, where it is run
    metric: Literal["top1"] | None = None
    max_drop: float | None = None
    gates: Gates = Gates()
    pruned: bool = (
        False  #: whether the engine is of a pruned source, and so may be far from this one
    )
    hold_out: HoldOut = None
    fixed_inputs: FixedInputs = {}


StageParams = (
    PruneParams | ExportParams | CastParams | CalibrateParams | BuildParams | MeasureParams
)


PARAMS: dict[JobKind, type[StageParams]] = {
    JobKind.PRUNE: PruneParams,
    JobKind.EXPORT: ExportParams,
    JobKind.CAST: CastParams,
    JobKind.CALIBRATE: CalibrateParams,
    JobKind.BUILD: BuildParams,
    JobKind.MEASURE: MeasureParams,
}
