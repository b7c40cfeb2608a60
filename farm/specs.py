"""The values that the farm speaks of: precisions, targets, profiles, and each stage's parameters."""

from __future__ import annotations

from enum import StrEnum
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from farm import architectures
from farm.errors import InvalidRequest


class Value(BaseModel):
    """A frozen value. Unknown fields are an error, so that a typo is never silently dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Precision(StrEnum):
    """The number format that an engine computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"  #: explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range, and fp32 on CPUs
    FP8 = "fp8"  #: E4M3, explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range
    INT8_DYNAMIC = "int8-dynamic"  #: int8 weights, activations as they come; the rest in fp32

    @property
    def computes_in(self) -> str:
        """The type of its products, as ``compute`` names them."""
        return "int8" if self is Precision.INT8_DYNAMIC else self.value


#: Those whose ranges come from calibration data.
CALIBRATED = (Precision.INT8, Precision.FP8)
QUANTIZED = (*CALIBRATED, Precision.INT8_DYNAMIC)


class Scope(StrEnum):
    """What a key allows. Each of them lets its holder read, too."""

    READ = "read"  #: see models, engines, builds and workers, and pull
    SUBMIT = "submit"  #: upload, submit, cancel, retry
    PROMOTE = "promote"  #: say which engines others are given by default
    ADMIN = "admin"  #: everything: also keys, the audit, plugins, gc and scrub


class Runtime(StrEnum):
    """What executes the engine."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME = "onnxruntime"
    TORCHSCRIPT = "torchscript"  #: built from the program itself, without ONNX


TENSORRTS = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)


class SourceFormat(StrEnum):
    """What the user hands in."""

    ONNX = "onnx"
    PT2 = "pt2"  #: a ``torch.export`` program
    TORCHSCRIPT = "torchscript"
    SAVEDMODEL = "savedmodel"  #: of TensorFlow 2, a folder as a pack
    SAFETENSORS = "safetensors"  #: weights, of an architecture that the request names


#: Those that PyTorch runs: their weights can be pruned.
MODULES = (SourceFormat.PT2, SourceFormat.SAFETENSORS)


class JobKind(StrEnum):
    """What a job does."""

    PRUNE = "prune"  #: source → the same program with some weights zero
    EXPORT = "export"  #: source → ONNX, checked against the source
    CAST = "cast"  #: ONNX → ONNX typed fp16 or bf16, or with int8 weights
    CALIBRATE = "calibrate"  #: ONNX + data → ONNX with explicit Q/DQ
    BUILD = "build"  #: typed ONNX → engine
    MEASURE = "measure"  #: engine → accuracy and latency


class DataKind(StrEnum):
    """On which data something was found."""

    EVALUATION = "evaluation"  #: the user's, apart from all that the engine was made with
    HELD_OUT = "held-out"  #: a part of the calibration data that the engine wasn't calibrated with
    CALIBRATION = "calibration"  #: the very data that it was calibrated with
    RANDOM = "random"  #: seeded noise


#: An axis may be of length 0: the cache of a decoder's first call is.
Axis = Annotated[int, Field(ge=0, le=2**31 - 1)]
#: More axes than any runtime takes. One fault of it is told: of thousands of shapes they would be many.
Shape = Annotated[tuple[Axis, ...], Field(max_length=16, fail_fast=True)]


Size = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
#: More than TensorRT takes.
SizeValues = Annotated[tuple[Size, ...], Field(max_length=64, fail_fast=True)]


class ValueRange(Value):
    """The values that an input which says a size may have, in a row: smallest, likely, largest."""

    min: SizeValues
    opt: SizeValues
    max: SizeValues

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max of the values must be as many")
        for low, mid, high in zip(self.min, self.opt, self.max, strict=True):
            if not low <= mid <= high:
                raise ValueError(f"values: min {low} ≤ opt {mid} ≤ max {high} doesn't hold")
        return self


class ShapeRange(Value):
    """The shapes that one input may have: smallest, the one to optimise for, largest."""

    min: Shape
    opt: Shape
    max: Shape
    values: ValueRange | None = (
        None  #: of an input whose values are sizes, which TensorRT must know
    )

    @model_serializer(mode="wrap")
    def _without_values(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "values" or value}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max must have the same number of axes")
        for axis, (low, mid, high) in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not low <= mid <= high:
                raise ValueError(f"axis {axis}: min {low} ≤ opt {mid} ≤ max {high} doesn't hold")
        return self


#: An optimization profile: input name → the shapes that it may have.
Profile = dict[str, ShapeRange]

#: Values of an input that is fixed, all together. More than that is a weight.
MAX_FIXED_VALUES = 4096
_MAX_FIXED_AXES = 8


def _checked_value(value: Any) -> Any:
    _count(value, 0)
    return value


def _count(value: Any, depth: int) -> int:
    """How many numbers there are in nested lists, which are rectangular."""
    if not isinstance(value, list):
        if not isinstance(value, bool | int | float):
            raise ValueError(f"{value!r} is neither a number, true or false, nor a list of these")
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value!r} isn't finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{value!r} is in no type that a tensor has")
        return 1
    if len(value) > MAX_FIXED_VALUES:
        raise ValueError(f"more than {MAX_FIXED_VALUES} values: keep them in the model")
    if depth == _MAX_FIXED_AXES:
        raise ValueError(f"the lists are nested more than {_MAX_FIXED_AXES} deep")
    shapes = {_shape(one) for one in value}
    if len(shapes) > 1:
        raise ValueError("the lists in it are of different lengths")
    total = sum(_count(one, depth + 1) for one in value)
    if total > MAX_FIXED_VALUES:
        raise ValueError(f"more than {MAX_FIXED_VALUES} values: keep them in the model")
    return total


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    return (len(value), *(_shape(value[0]) if value else ()))


#: A number, a truth, or lists of them in the shape of the input.
FixedValue = Annotated[Any, AfterValidator(_checked_value)]

#: Inputs that always have one value, which is folded into the graph: name → value.
FixedInputs = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], FixedValue],
    Field(max_length=64),
]


#: The name of a dynamic axis that has none. Two such axes have nothing to do with each other.
ANONYMOUS = "?"


class TensorSpec(Value):
    """A graph input or output. A dynamic axis is its dimension's name, or ``?`` when anonymous."""

    name: str
    dtype: str  #: numpy's name: ``float32``, ``int64``
    shape: tuple[int | str, ...]


class Target(Value):
    """A runtime and a GPU tag: what an engine is built for."""

    runtime: Runtime
    gpu: str  #: ``sm_89``, a product name such as ``h200``, or ``cpu``

    def __str__(self) -> str:
        return f"{self.runtime}:{self.gpu}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A target as ``str`` gives it; what users write is read by ``targets.parse``."""
        runtime, _, gpu = text.partition(":")
        return cls(runtime=Runtime(runtime), gpu=gpu)


LibraryDigest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


_MAX_PLUGINS = 16


class BuilderOptions(Value):
    """Of TensorRT's builder, by its names. The defaults are the builder's own."""

    tf32: bool = Field(True, description="fp32 products may be computed in TF32, where there is it")
    sparse_weights: bool = Field(
        False, description="use 2:4 sparse kernels for weights that are pruned so"
    )
    builder_optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    max_aux_streams: Annotated[int, Field(ge=0, le=64)] | None = None
    workspace_mib: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="most memory that a layer may use, in MiB; by default all"
    )
    hardware_compatibility_level: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = Field(
        False, description="run with later versions of TensorRT of the same major too"
    )
    weight_streaming: bool = Field(
        False, description="the weights may stay in the host's memory at run time"
    )
    timing_cache: bool = Field(
        True, description="take what the fleet has timed on such a GPU, and add to it"
    )
    plugins: Annotated[tuple[LibraryDigest, ...], Field(max_length=_MAX_PLUGINS)] = Field(
        (), description="digests of allow-listed plugin libraries to load, in this order"
    )

    @field_validator("plugins", mode="before")
    @classmethod
    def _by_commas(cls, given: object) -> object:
        # No more than it takes to see that they are too many.
        if isinstance(given, str):
            return tuple(filter(None, given.split(",", _MAX_PLUGINS)))
        # Of JSON, which has no tuples.
        return tuple(given[: _MAX_PLUGINS + 1]) if isinstance(given, list) else given

    def changed(self) -> dict[str, object]:
        """Those that aren't the builder's own, by name."""
        return self.model_dump(exclude_defaults=True)


CalibrationMethod = Literal["entropy", "max"]


class Prune(Value):
    """Which weights of convolutions and matrix products become zero, layer by layer."""

    method: Literal["l1-unstructured", "2:4"] = Field(
        description="those of least magnitude, anywhere; or 2 in each 4 along the input channels"
    )
    amount: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each layer's weights, for l1-unstructured"
    )

    @model_validator(mode="after")
    def _amount_where_it_means_something(self) -> Self:
        if (self.amount is None) == (self.method == "l1-unstructured"):
            raise ValueError(
                "l1-unstructured needs an amount; 2:4 has none, since it is half of all"
            )
        return self

    def __str__(self) -> str:
        return "2:4" if self.amount is None else f"l1:{self.amount}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """``2:4`` or ``l1:0.5``, as ``str`` gives it.

        Raises:
            InvalidRequest
        """
        if text == "2:4":
            return cls(method="2:4")
        method, _, amount = text.partition(":")
        try:
            if method == "l1":
                return cls(method="l1-unstructured", amount=float(amount))
        except ValueError:
            pass
        raise InvalidRequest(
            f"{text!r} is no way of pruning",
            hint="write 2:4, or l1 and the share of weights that becomes zero, between 0 and 1: l1:0.5",
        )


class Architecture(Value):
    """The module that safetensors weights are of."""

    library: Literal["transformers", "timm", "torchvision"]
    name: Annotated[str, Field(max_length=100)]  #: the class, or the function that makes the model
    config: dict[str, Any] = {}  #: transformers: the fields of config.json

    @model_validator(mode="after")
    def _known(self) -> Self:
        if reason := architectures.refusal(self.library, self.name, self.config):
            raise ValueError(reason)
        return self


class Gates(Value):
    """An engine that fails one of these isn't broken, and doubtful: no pull takes it by default.

    A share that few samples leave open counts as passed.
    """

    agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.98,
        description="least share of classes, of integers, or of found items that are the source's",
    )
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.1,
        description="largest error of floats: its root mean square over the standard deviation of the "
        "source's values; 0.1 is a cosine similarity of about 0.995",
    )
    drop: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="largest loss of the task's metric, where labels tell it"
    )


class QuantizedGates(Gates):
    """Of engines that compute in int8 or fp8: an error of 0.35 is a cosine similarity of about 0.94."""

    agreement: Annotated[float, Field(ge=0, le=1)] = 0.9
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.35
    drop: Annotated[float, Field(ge=0, le=1)] = 0.03


class GateSet(Value):
    """The gates of a build's engines, by what they compute in."""

    floats: Gates = Gates()
    quantized: QuantizedGates = QuantizedGates()

    def of(self, precision: Precision) -> Gates:
        return self.quantized if precision in QUANTIZED else self.floats

    def changed(self, changes: GateChanges) -> GateSet:
        """The same with some gates set for all precisions."""
        given = changes.model_dump(exclude_none=True)
        return GateSet.model_validate(
            {family: gates | given for family, gates in self.model_dump().items()}
        )


class GateChanges(Value):
    """What a build sets instead of the farm's gates."""

    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    drop: Annotated[float, Field(ge=0, le=1)] | None = None


HoldOut = Annotated[int, Field(ge=1, le=4096)] | None
"""The batch size by which a part of the calibration data is held out, to judge engines by; None where
there are evaluation data for that."""


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
