"""What a stage records of its job, by stage: checked by the worker before anything keeps it.

A field that a stage doesn't have is refused. Of accuracy and metrics, which differ by what was measured with
what, the fields that the farm or its clients read have their types; others are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.reports import extent
from farm.reports.extent import TooMuch
from farm.reports.layers import ComputeView
from farm.specs.options import BuilderOptions
from farm.specs.shapes import ShapeRange
from farm.specs.stages import JobKind

_MOST_NAMES = 20_000  #: of layers, inputs, outputs: more than any model of those that can be built
_MOST_LISTED = 1000

Word = Annotated[str, Field(max_length=100)]
Text = Annotated[str, Field(max_length=4000)]
Name = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Texts = Annotated[list[Text], Field(max_length=_MOST_LISTED, fail_fast=True)]
Words = Annotated[list[Word], Field(max_length=_MOST_LISTED, fail_fast=True)]
Counts = Annotated[list[Count], Field(max_length=_MOST_LISTED, fail_fast=True)]
Interval = Annotated[list[Number | None], Field(max_length=2)]
Axis = Annotated[int, Field(ge=-1, lt=2**63)]
Profiles = Annotated[
    list[Annotated[dict[Name, ShapeRange], Field(max_length=_MOST_NAMES)]],
    Field(max_length=8, fail_fast=True),
]


class Record(BaseModel):
    """What is kept. A field that it hasn't is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenRecord(BaseModel):
    """What is kept, with other fields beside those that are read."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Tensor(Record):
    name: Name
    dtype: Word
    shape: Annotated[list[Axis | Name], Field(max_length=64, fail_fast=True)]


Tensors = Annotated[list[Tensor], Field(max_length=_MOST_NAMES, fail_fast=True)]


class Facts(Record):
    """Of every stage."""

    peak_memory_bytes: Count | None = None


class Pruned(Record):
    weights: Count
    sparsity: Share


class PruneFacts(Facts):
    weights: Count | None = None
    sparsity: Share | None = None
    layers: Annotated[dict[Name, Pruned], Field(max_length=_MOST_NAMES)] = {}
    left_out: Annotated[dict[Name, Text], Field(max_length=_MOST_NAMES)] = {}


class Check(Record):
    """How the exported graph was compared with its source."""

    max_abs_error: Number | None = None
    max_rel_error: Number | None = None
    data: Word | None = None
    batches: Counts = []
    random: Texts = []
    reason: Text | None = None
    left_out: Annotated[dict[Name, Text], Field(max_length=_MOST_NAMES)] = {}


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
    kept_in_fp32: Annotated[dict[Name, Count], Field(max_length=_MOST_NAMES)] = {}


class CalibrateFacts(Facts):
    samples: Count | None = None
    batch_size: Count | None = None
    batches: Count | None = None
    precision: Word | None = None
    method: Word | None = None
    qdq_pairs: Count | None = None
    remainder: Word | None = None
    remainder_nodes: Annotated[dict[Word, Count], Field(max_length=_MOST_LISTED)] = {}
    remainder_by: Word | None = None
    opset: Count | None = None


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


class Task(OpenRecord):
    metric: Word | None = None
    source: Number
    engine: Number
    drop: Number
    engine_interval: Interval | None = None
    drop_interval: Interval | None = None


class Accuracy(OpenRecord):
    """How near an engine's outputs are to its source's."""

    data: Word | None = None
    measured_on: Word | None = None
    samples: Count | None = None
    task: Task | None = None
    top1_agreement: Number | None = None
    top1_interval: Interval | None = None
    top1_output: Name | None = None
    top1_or_tied: Number | None = None
    equal: Number | None = None
    equal_interval: Interval | None = None
    matched: Number | None = None
    matched_interval: Interval | None = None
    match_tolerance: Number | None = None
    cosine_mean: Number | None = None
    cosine_min: Number | None = None
    cosine_interval: Interval | None = None
    relative_error: Number | None = None
    max_abs_error: Number | None = None
    all_nan: Annotated[list[Name], Field(max_length=_MOST_NAMES, fail_fast=True)] = []
    outputs: Annotated[list[dict[Word, Any]], Field(max_length=_MOST_NAMES, fail_fast=True)] = []
    batch_invariance: Annotated[dict[Word, Number | bool | None], Field(max_length=20)] | None = (
        None
    )


Percentiles = Annotated[dict[Word, Number], Field(max_length=20)]


class Timed(OpenRecord):
    """The figures of one model, or the reason why there are none."""

    latency_ms: Percentiles | None = None
    h2d_ms: Percentiles | None = None
    compute_ms: Percentiles | None = None
    d2h_ms: Percentiles | None = None
    enqueue_ms: Percentiles | None = None
    iterations: Count | None = None
    samples_per_s: Number | None = None
    queries_per_s: Number | None = None
    reason: Text | None = None
    autocast: Word | None = None


class Throughput(OpenRecord):
    batch: Count
    samples_per_s: Number | None
    latency_p50_ms: Number | None = None
    iterations: Count | None = None
    reason: Text | None = None


class Metrics(Timed):
    """Latency and throughput of an engine, and of what it is held against."""

    batch: Count | None = None
    shapes: Annotated[dict[Name, Counts], Field(max_length=_MOST_NAMES)] = {}
    throughput: Annotated[list[Throughput], Field(max_length=_MOST_LISTED, fail_fast=True)] = []
    eager: Timed | None = None
    eager_reason: Text | None = None
    eager_autocast: Timed | None = None
    compiled: Timed | None = None
    cuda_graph: Timed | None = None
    speed_up: Number | None = None
    speed_up_reason: Text | None = None
    others_cpu_share: Number | None = None
    warnings: Texts = []
    #: Of the engine it is a difference, and others on the GPU may have given some back meanwhile.
    memory: Annotated[dict[Word, int | None], Field(max_length=20)] | None = None
    gpu: Annotated[dict[Word, Any], Field(max_length=50)] | None = None
    settings: Annotated[dict[Word, Any], Field(max_length=50)] | None = None


class MeasureFacts(Facts):
    accuracy: Accuracy
    doubts: Texts = []
    metrics: Metrics | None
    metrics_reason: Text | None


FACTS: Mapping[JobKind, type[Facts]] = {
    JobKind.PRUNE: PruneFacts,
    JobKind.EXPORT: ExportFacts,
    JobKind.CAST: CastFacts,
    JobKind.CALIBRATE: CalibrateFacts,
    JobKind.BUILD: BuildFacts,
    JobKind.MEASURE: MeasureFacts,
}


def check(kind: JobKind, facts: Mapping[str, Any]) -> None:
    """Refuse facts that no stage of this kind records.

    Raises:
        TooMuch: with the first thing that is wrong with them.
    """
    extent.check(facts)
    text = json.dumps(facts)
    if len(text) > extent.MAX_BYTES:
        raise TooMuch(f"they have {len(text)} bytes")
    try:
        FACTS[kind].model_validate_json(text, strict=True)
    except ValidationError as err:
        raise TooMuch(first_of(err)) from None


def first_of(err: ValidationError) -> str:
    """The first of the errors, in words of a bounded length."""
    if err.error_count() > _MOST_LISTED:
        return f"{err.error_count()} values in it are wrong"
    one = err.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg'][:200]}"


def shown(facts: Any) -> dict[str, Any]:
    """Facts as they were kept; none where an earlier farm has kept what can't be answered."""
    return facts if isinstance(facts, dict) and extent.fits(facts) else {}


def is_readable(accuracy: Any, metrics: Any) -> bool:
    """Whether the farm can work with what was kept of a measurement, by whatever version of it."""
    try:
        for record, kept in ((Accuracy, accuracy), (Metrics, metrics)):
            extent.check(kept)
            if kept is not None:
                record.model_validate(kept, strict=True)
    except (TooMuch, ValidationError):
        return False
    return isinstance(accuracy, dict)
