"""The stages of a build: one ``StageSpec`` per kind of job, with all that the farm knows about it.

Keys, preloaded modules, checks of results, explanations and docs are derived from the table at the end. The
stages themselves are in ``workers.stages``, each in the module of its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from farm.reports import extent
from farm.reports.accuracy import Accuracy
from farm.reports.extent import TooMuch
from farm.reports.layers import ComputeView
from farm.reports.metrics import Metrics
from farm.reports.provider import ProviderChoice
from farm.reports.records import (
    MOST_LISTED,
    MOST_NAMES,
    Count,
    Counts,
    Name,
    Number,
    Profiles,
    Record,
    Share,
    Tensors,
    Text,
    Texts,
    Word,
    Words,
    first_of,
)
from farm.reports.search import Search
from farm.specs.accuracy_goal import AccuracyGoal, Pins
from farm.specs.gates import Gates
from farm.specs.inference import TIMEOUT_S
from farm.specs.options import BuilderOptions, Prune
from farm.specs.precision import TRAITS, CalibrationMethod, Percentile, Precision
from farm.specs.preprocess import Preprocess
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.shapes import FixedInputs, Profile
from farm.specs.source import Architecture, HoldOut, SourceFormat
from farm.specs.tasks import Metric, TaskOptions
from farm.specs.values import Value
from farm.specs.words import Folded

ReportProgress = Callable[[str, float | None], None]
"""What a stage calls with its phase, and with the share done in 0…1, or None where that isn't known."""


class JobKind(Folded):
    """What a job does."""

    PRUNE = "prune"  #: source → the same program with some weights zero
    EXPORT = "export"  #: source → ONNX, checked against the source
    CAST = "cast"  #: ONNX → ONNX typed fp16 or bf16, or with int8 weights
    CALIBRATE = "calibrate"  #: ONNX + data → ONNX with explicit Q/DQ
    BUILD = "build"  #: typed ONNX → engine
    MEASURE = "measure"  #: engine → accuracy and latency
    INFER = "infer"  #: engine + inputs → outputs; of no build, for a quick check

    @classmethod
    def of(cls, params: StageParams) -> JobKind:
        """The kind with these parameters."""
        return next(kind for kind, stage in STAGES.items() if stage.params is type(params))


def _typed_by(stage: str) -> Callable[[Precision], Precision]:
    def check(precision: Precision) -> Precision:
        if TRAITS[precision].typed_by != stage:
            raise ValueError(f"the {stage} stage makes no {precision} graph")
        return precision

    return check


class PruneParams(Value):
    format: SourceFormat
    architecture: Architecture | None = None
    prune: Prune
    fixed_inputs: FixedInputs = {}


class ExportParams(Value):
    format: SourceFormat
    architecture: Architecture | None = None
    profiles: tuple[Profile, ...] = ()
    preprocess: Preprocess | None = None  #: of its data, if they are images
    fixed_inputs: FixedInputs = {}


class CastParams(Value):
    precision: Annotated[Precision, AfterValidator(_typed_by("cast"))]
    profiles: tuple[Profile, ...] = ()
    hold_out: HoldOut = None
    preprocess: Preprocess | None = None  #: of its data, if they are images
    fixed_inputs: FixedInputs = {}


class CalibrateParams(Value):
    precision: Annotated[Precision, AfterValidator(_typed_by("calibrate"))] = Precision.INT8
    method: CalibrationMethod = "auto"
    percentile: Percentile | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    goal: AccuracyGoal | None = None
    pins: Pins = Pins()
    profiles: tuple[Profile, ...] = ()
    hold_out: HoldOut = None
    preprocess: Preprocess | None = None  #: of its data, if they are images
    fixed_inputs: FixedInputs = {}


class BuildParams(Value):
    target: Target
    compute_capability: str  #: ``sm_89``, or ``cpu``
    precision: Precision
    profiles: tuple[Profile, ...] = ()
    options: BuilderOptions = BuilderOptions()
    format: SourceFormat | None = None  #: the source's, if the engine is built from it
    architecture: Architecture | None = None
    hold_out: HoldOut = None
    preprocess: Preprocess | None = None  #: of its data, if they are images
    fixed_inputs: FixedInputs = {}


class MeasureParams(Value):
    """What to measure. Without a target the typed ONNX stands in for engines that can't run here."""

    precision: Precision
    target: Target | None = None
    format: SourceFormat
    architecture: Architecture | None = None
    profiles: tuple[Profile, ...] = ()
    options: BuilderOptions = BuilderOptions()  #: the engine's build options, if it is run
    metric: Metric | None = None
    task: TaskOptions = TaskOptions()
    max_drop: float | None = None
    gates: Gates = Gates()
    pruned: bool = False  #: whether the engine's source was pruned, so that its outputs may differ
    hold_out: HoldOut = None
    preprocess: Preprocess | None = None  #: of its data, if they are images
    fixed_inputs: FixedInputs = {}


class InferParams(Value):
    target: Target
    options: BuilderOptions = BuilderOptions()  #: the engine's build options
    only_input: str | None = None  #: the input that an array without a name is for


StageParams = (
    PruneParams
    | ExportParams
    | CastParams
    | CalibrateParams
    | BuildParams
    | MeasureParams
    | InferParams
)


class Facts(Record):
    """Of every stage."""

    peak_memory_bytes: Count | None = None


class Pruned(Record):
    weights: Count
    sparsity: Share


class PruneFacts(Facts):
    weights: Count | None = None
    sparsity: Share | None = None
    layers: Annotated[dict[Name, Pruned], Field(max_length=MOST_NAMES)] = {}
    left_out: Annotated[dict[Name, Text], Field(max_length=MOST_NAMES)] = {}


class Check(Record):
    """How the exported graph was compared with its source."""

    max_abs_error: Number | None = None
    max_rel_error: Number | None = None
    data: Word | None = None
    batches: Counts = []
    random: Texts = []
    reason: Text | None = None
    left_out: Annotated[dict[Name, Text], Field(max_length=MOST_NAMES)] = {}


class ExportFacts(Facts):
    inputs: Tensors
    outputs: Tensors
    opset: Count | None = None
    parameters: Count | None = None
    check: Check | None = None


class CastFacts(Facts):
    precision: Word | None = None
    low_precision_nodes: Count | None = None
    float_nodes: Count | None = None
    share: Share | None = None
    opset: Count | None = None
    inputs: Tensors = []
    outputs: Tensors = []
    own_types: Words = []
    data: Word | None = None
    samples: Count | None = None
    kept_in_fp32: Annotated[dict[Name, Count], Field(max_length=MOST_NAMES)] = {}


class CalibrateFacts(Facts):
    samples: Count | None = None
    batch_size: Count | None = None
    batches: Count | None = None
    precision: Word | None = None
    method: Word | None = None
    chosen: Annotated[dict[Word, Count], Field(max_length=MOST_LISTED)] = {}
    without_range: Texts = []  #: tensors that an imported cache lacks
    qdq_pairs: Count | None = None
    remainder: Word | None = None
    remainder_nodes: Annotated[dict[Word, Count], Field(max_length=MOST_LISTED)] = {}
    remainder_by: Word | None = None
    snr_db: Annotated[dict[Name, Number], Field(max_length=MOST_LISTED)] = {}
    left_in_float: Annotated[dict[Word, Texts], Field(max_length=MOST_LISTED)] = {}
    opset: Count | None = None
    search: Search | None = None


class CacheUse(Record):
    taken: bool | None = None
    entries_before: Count | None = None
    entries_after: Count | None = None
    misses: Count | None = None
    hit: bool


class BuildFacts(Facts):
    runtime: Word | None = None
    runtime_version: Annotated[str, Field(max_length=40)]
    compute_capabilities: Words = []
    layers: Count | None = None
    compute: ComputeView | None = None
    build_s: Number | None = None
    engine_bytes: Count | None = None
    inputs: Tensors
    outputs: Tensors
    differences: Texts | None = None
    profiles: Profiles
    options: BuilderOptions | None = None
    float_types: Words = []
    narrowed: Words = []
    timing_cache: CacheUse | None = None
    provider: ProviderChoice | None = None


class MeasureFacts(Facts):
    accuracy: Accuracy
    doubts: Texts = []
    metrics: Metrics | None
    metrics_reason: Text | None


class InferFacts(Facts):
    outputs: Tensors
    run_ms: Number


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One kind of stage."""

    params: type[StageParams]
    facts: type[Facts]  #: recorded with its job
    version: int  #: part of the keys: raise it when a code change changes the outputs
    tools: tuple[str, ...]  #: packages whose versions can change the outputs
    takes: tuple[Role, ...]  #: required inputs
    may_take: tuple[Role, ...] = ()
    #: required outputs; a result has at least one of these and ``may_make``
    makes: tuple[Role, ...] = ()
    may_make: tuple[Role, ...] = ()
    runs_source: bool = False  #: so it depends on the tools of the source's format
    ends_engine: bool = False  #: whether it may complete an engine
    timeout_s: float | None = None  #: a shorter limit than the general one


_ONNX = ("onnx", "onnx-ir", "numpy")
_MODELOPT = (
    "nvidia-modelopt",
    "onnx-graphsurgeon",
    "onnxscript",
    "onnxslim",
    "onnxruntime",
    "polygraphy",
    "ml-dtypes",
    "scipy",
    *_ONNX,
)
_DATA = (Role.CALIBRATION, Role.EVALUATION)

STAGES: Mapping[JobKind, StageSpec] = {
    JobKind.PRUNE: StageSpec(
        params=PruneParams,
        facts=PruneFacts,
        version=1,
        tools=("torch",),
        takes=(Role.SOURCE,),
        makes=(Role.SOURCE,),
        timeout_s=3600.0,
    ),
    JobKind.EXPORT: StageSpec(
        params=ExportParams,
        facts=ExportFacts,
        version=5,
        tools=("torch", "onnxscript", *_ONNX),
        takes=(Role.SOURCE,),
        may_take=_DATA,
        makes=(Role.ONNX,),
        runs_source=True,
    ),
    JobKind.CAST: StageSpec(
        params=CastParams,
        facts=CastFacts,
        version=4,
        tools=("onnxruntime", "ml-dtypes", *_ONNX),
        takes=(Role.ONNX,),
        may_take=_DATA,
        makes=(Role.TYPED,),
        timeout_s=7200.0,
    ),
    JobKind.CALIBRATE: StageSpec(
        params=CalibrateParams,
        facts=CalibrateFacts,
        version=9,
        tools=_MODELOPT,
        takes=(Role.ONNX,),
        may_take=(*_DATA, Role.RANGES),
        may_make=(Role.TYPED, Role.TYPED_FP16, Role.TYPED_HALF, Role.HISTOGRAMS),
    ),
    JobKind.BUILD: StageSpec(
        params=BuildParams,
        facts=BuildFacts,
        version=5,
        tools=("onnx",),
        takes=(),
        may_take=(Role.TYPED, Role.SOURCE, Role.ONNX, *_DATA, Role.TIMING_CACHE),
        makes=(Role.ENGINE, Role.LAYERS),
        may_make=(Role.TIMING_CACHE,),
        ends_engine=True,
    ),
    JobKind.MEASURE: StageSpec(
        params=MeasureParams,
        facts=MeasureFacts,
        version=5,
        tools=("torch", "onnx", "onnxruntime", "numpy"),
        takes=(Role.SOURCE,),
        may_take=(Role.TYPED, Role.ENGINE, *_DATA, Role.PEERS),
        makes=(Role.REPORT,),
        may_make=(Role.PEERS,),
        runs_source=True,
        ends_engine=True,
        timeout_s=7200.0,
    ),
    JobKind.INFER: StageSpec(
        params=InferParams,
        facts=InferFacts,
        version=1,
        tools=("numpy",),
        takes=(Role.ENGINE, Role.INPUTS),
        makes=(Role.OUTPUTS,),
        timeout_s=TIMEOUT_S,
    ),
}


def check_facts(kind: JobKind, facts: Mapping[str, Any]) -> None:
    """Refuse facts that no stage of this kind records.

    Raises:
        TooMuch: names the first fault.
    """
    extent.check(facts)
    text = json.dumps(facts)
    if len(text) > extent.MAX_BYTES:
        raise TooMuch(f"they have {len(text)} bytes")
    try:
        STAGES[kind].facts.model_validate_json(text, strict=True)
    except ValidationError as err:
        raise TooMuch(first_of(err)) from None
