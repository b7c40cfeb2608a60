"""The shapes of the REST contract, shared by the API that serves them and the client that reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from farm.specs.gates import GateChanges, GateSet
from farm.specs.options import BuilderOptions, Prune
from farm.specs.precision import CalibrationMethod, Precision
from farm.specs.runtime import Runtime
from farm.specs.scopes import Scope
from farm.specs.shapes import FixedInputs, Profile, ShapeRange, TensorSpec
from farm.specs.source import Architecture, SourceFormat
from farm.specs.stages import JobKind
from farm.specs.states import BuildState, EngineState, JobState, Reuse

Digest = Annotated[
    str,
    StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"),
    Field(examples=["sha256:" + "0" * 64]),
]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Request(BaseModel):
    """What a client sends. Unknown fields are refused, so that a typo is never silently dropped."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the farm answers. A client ignores fields that it doesn't know."""

    model_config = ConfigDict(from_attributes=True)


class Source(Request):
    digest: Digest
    format: SourceFormat
    architecture: Architecture | None = Field(
        None,
        description="of safetensors weights: the module that they are of",
        examples=[{"library": "transformers", "name": "BertModel", "config": {}}],
    )

    @model_validator(mode="after")
    def _architecture_of_weights(self) -> Self:
        if (self.format is SourceFormat.SAFETENSORS) != (self.architecture is not None):
            raise ValueError(
                "safetensors need an architecture (--architecture transformers:BertModel), and "
                "other formats take none"
            )
        return self


#: Of a request: models with more inputs are rare, and each of them is in many places of the database.
_MOST_INPUTS = 512
_MOST_RANGES = 1024
RequestedProfile = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], ShapeRange],
    Field(max_length=_MOST_INPUTS),
]


class Calibration(Request):
    digest: Digest
    method: CalibrationMethod = "entropy"
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8


class Evaluation(Request):
    digest: Digest
    metric: Literal["top1"] | None = Field(
        None, description="task metric; needs an array `label` in the data"
    )
    max_drop: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="an engine that loses more of the metric than this fails its build"
    )


BUILD_EXAMPLE: dict[str, Any] = {
    "model": "digits",
    "source": {"digest": "sha256:" + "a" * 64, "format": "pt2"},
    "precisions": ["fp16", "int8"],
    "targets": ["sm_89", "rtx-4090", "tensorrt-rtx:sm_120", "onnxruntime:cpu"],
    "profiles": [{"image": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [64, 1, 8, 8]}}],
    "calibration": {"digest": "sha256:" + "b" * 64, "method": "entropy", "batch_size": 8},
    "evaluation": {"digest": "sha256:" + "c" * 64, "metric": "top1", "max_drop": 0.01},
    "options": {"tf32": True},
    "priority": 5,
    "labels": {"team": "vision"},
}


class BuildRequest(Request):
    """A model version × precisions × targets."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [BUILD_EXAMPLE]})

    model: Name
    source: Source
    precisions: Annotated[list[Precision], Field(min_length=1, max_length=8)]
    targets: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=100)]],
        Field(min_length=1, max_length=64),
    ]
    profiles: Annotated[list[RequestedProfile], Field(max_length=8)] = []
    fixed_inputs: FixedInputs = Field(
        {},
        description="inputs that always have one value, which is folded into the graph: a number, true "
        "or false, or lists of them in the input's shape",
        examples=[{"sr": 16000}],
    )
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: GateChanges | None = Field(
        None,
        description="an engine that fails one is published as doubtful; by default the farm's (FARM_GATES)",
    )
    options: BuilderOptions = BuilderOptions()
    prune: Prune | None = Field(
        None, description="of the source, before anything else; not of ONNX"
    )
    priority: Annotated[int, Field(ge=0, le=9, description="9 is the most urgent")] = 5
    labels: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=100)],
        Annotated[str, StringConstraints(max_length=200)],
    ] = Field(default_factory=dict, max_length=32)

    @model_validator(mode="after")
    def _fixed_or_ranged(self) -> Self:
        ranges = sum(map(len, self.profiles))
        if ranges > _MOST_RANGES:
            raise ValueError(
                f"the profiles have {ranges} ranges of shapes in all, and at most {_MOST_RANGES} are taken"
            )
        both = {name for profile in self.profiles for name in profile} & self.fixed_inputs.keys()
        if both:
            raise ValueError(
                f"{', '.join(sorted(both))}: an input that is fixed has no profile; leave one of both out"
            )
        return self


class Problem(BaseModel):
    """RFC 9457 ``application/problem+json``."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="the fact in kebab case, stable for scripts")
    detail: str
    hint: str | None = Field(None, description="what to do next")


class Blob(Answer):
    digest: Digest
    bytes: int


class GcRequest(Request):
    """What garbage collection shall take."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"dry_run": True, "older_than_s": 86400}]}
    )

    dry_run: bool = Field(False, description="remove nothing, and say what would be removed")
    older_than_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = Field(
        86400.0,
        description="keep what was put, or asked for, since then: somebody may be about to use it",
    )


GC_EXAMPLE: dict[str, Any] = {
    "dry_run": False,
    "removed": [{"digest": "sha256:" + "d" * 64, "bytes": 52_428_800}],
    "removed_total": 1,
    "removed_bytes": 52_428_800,
    "uploads": 0,
    "uploads_bytes": 0,
    "kept": 14,
    "kept_bytes": 734_003_200,
}


class GcReport(Answer):
    """What garbage collection removed, or would remove."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [GC_EXAMPLE]})

    dry_run: bool
    removed: list[Blob] = Field(description="blobs that nothing referred to; the first 1000")
    removed_total: int = Field(description="how many blobs, also those past the first 1000")
    removed_bytes: int = Field(description="of all removed blobs")
    uploads: int = Field(description="files that interrupted uploads had left, removed too")
    uploads_bytes: int
    kept: int = Field(description="blobs that are still there")
    kept_bytes: int


class Readiness(Answer):
    """Whether the farm can take work."""

    status: str = Field(description="`ready`, or `degraded` while work would wait")
    checks: dict[str, str] = Field(description="part → `ok`, or what is wrong with it")


class ScrubReport(Answer):
    """What a scrub of the store has found."""

    checked: int = Field(description="blobs that were hashed")
    checked_bytes: int
    damaged: list[str] = Field(
        description="digests of blobs that held other bytes, and were set aside; the first 1000"
    )
    missing: list[str] = Field(
        description="digests of blobs that the farm counts on and the store lacks; the first 1000"
    )


class Failure(Answer):
    """Why a job failed."""

    code: str
    detail: str
    hint: str | None = None


class JobView(Answer):
    id: int
    kind: JobKind
    title: str = Field(examples=["build digits:int8@sm_89"])
    key: str
    state: JobState
    reuse: Reuse = Field(description="whether this build ran the job, joined it or took its result")
    runtime: Runtime | None
    target: str | None = Field(examples=["tensorrt-rtx:sm_89"])
    precision: Precision | None
    attempt: int
    worker: str | None
    waits_for: str | None = Field(
        None, description="for a queued job that nobody online can run: which worker it waits for"
    )
    phase: str | None = Field(
        None, description="what it does now; of a queued job, what interrupted it"
    )
    progress: float | None = Field(None, description="share of the phase done, 0 to 1")
    error: Failure | None
    facts: dict[str, Any] = Field(description="what the stage recorded")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class TypeShare(Answer):
    """What an engine computes in one type."""

    layers: int = Field(description="convolutions and matrix products")
    share: float | None = Field(
        description="of all multiply-accumulates, 0 to 1; null where a shape isn't known"
    )


class ComputeView(Answer):
    """In which types an engine multiplies, at the opt shapes of its first profile."""

    macs: int | None = Field(description="multiply-accumulates of one run; null where unknown")
    types: dict[str, TypeShare] = Field(examples=[{"int8": {"layers": 53, "share": 0.97}}])
    source: Literal["graph", "inspector", "plan", "optimised-graph", "engine"] = Field(
        "graph",
        description="who says so: the typed graph; of the engine itself TensorRT's inspector, the text in "
        "a TensorRT-RTX plan, or the graph that ONNX Runtime has optimised; `engine` is an earlier "
        "farm's word for the inspector",
    )
    found: int | None = Field(
        None,
        description="how many products the engine names; the others are as the typed graph has them",
    )


class LayerTensor(Answer):
    name: str
    type: str | None
    shape: list[int] | None = Field(description="-1 is a dynamic axis")
    format: str | None = Field(
        default=None, description="how it lies in memory, in TensorRT's words"
    )


class Layer(Answer):
    name: str
    type: str
    inputs: list[LayerTensor]
    outputs: list[LayerTensor]
    kernel: str | None = Field(default=None, description="the tactic that the builder chose")
    operators: list[str] = Field(default=[], description="of the ONNX graph, that it computes")


class ProductView(Answer):
    """A convolution or a matrix product."""

    name: str
    op_type: str
    type: str = Field(description="in which it computes")
    macs: int | None
    not_quantized: list[str] = Field(description="its inputs that aren't dequantised tensors")
    typed: str | None = Field(None, description="the graph's type, where the engine's is another")
    layer: str | None = Field(None, description="of the engine, that computes it")


class WeightsView(Answer):
    """Constants of one type."""

    parameters: int
    bytes: int


class MemoryView(Answer):
    """What an engine takes of a GPU's memory, as TensorRT says; null where it doesn't."""

    context_bytes: int | None = Field(description="of an execution context: activations, workspace")
    context_bytes_by_profile: list[int]
    weights_bytes: int | None
    streamable_weights_bytes: int | None = Field(description="that may stay in the host's memory")
    aux_streams: int | None
    constants: dict[str, int] = Field(
        {}, description="bytes of the constants in the engine by type, where it says so"
    )


#: Of an engine's layer report: some hundred bytes for each layer.
MAX_LAYER_REPORT_BYTES = 32 * 2**20


class LayerReport(Answer):
    """What is in an engine."""

    source: str = Field(description="where the layers were read from")
    compute: ComputeView
    products: Annotated[list[ProductView], Field(fail_fast=True)]
    layers: Annotated[list[Layer], Field(fail_fast=True)]
    kinds: dict[str, int] = Field({}, description="kind of layer → how many")
    operators: int | None = Field(None, description="of the typed graph, before any fusion")
    fusions: dict[str, int] = Field(
        {}, description="kind of layer → how many stand for several operators"
    )
    weights: dict[str, WeightsView] = Field({}, description="by type")
    memory: MemoryView | None = None
    inputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    outputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    profiles: Annotated[list[Profile], Field(fail_fast=True)] = []


class Comparison(Answer):
    """An engine beside one that isn't compressed so: unpruned, or of a wider type.

    Of the same version, target and profiles.
    """

    engine: str
    precision: Precision
    size_ratio: float = Field(description="of the bytes; below 1 it is smaller")
    latency_ratio: float | None = Field(
        description="of the median latencies; null where they can't be compared"
    )
    latency_reason: str | None = Field(
        None,
        description="why there is no ratio: what wasn't measured, was disturbed, or was measured otherwise",
    )
    task_drop: float | None = Field(
        description="of the task's metric; null without the same labels for both"
    )
    agreement_drop: float | None = Field(
        description="of the top-1 agreement with the source; null unless both are of such data"
    )


class Judgement(Answer):
    """What an engine was found to be worth when its model was submitted once more."""

    engine: str = Field(description="id of the row, which has all figures")
    data: str | None = Field(description="what it was judged on")
    labelled: bool = Field(description="whether there were labels, and so a metric of the task")
    samples: int | None
    state: EngineState
    doubts: list[str]
    accuracy: dict[str, Any]
    build: str
    created_at: datetime


class EngineView(Answer):
    """A row of the registry."""

    id: str
    model: str
    version: int
    runtime: Runtime
    runtime_version: str
    gpu: str
    precision: Precision
    prune: str | None = Field(
        None, description="how its weights were pruned: 2:4, l1:0.5; null for one with all weights"
    )
    digest: Digest
    bytes: int
    accuracy: dict[str, Any]
    metrics: dict[str, Any] | None
    metrics_reason: str | None = Field(description="why there are no metrics")
    state: EngineState = Field(
        EngineState.READY, description="doubtful ones are pulled only where they are asked for"
    )
    doubts: list[str] = Field([], description="why it is doubtful, in words")
    compute: ComputeView | None = Field(
        None, description="in which types it multiplies; null where nobody counted"
    )
    against: Comparison | None = Field(
        None,
        description="whether it was worth it: of a pruned engine over the unpruned one, of int8 and fp8 "
        "over fp16 or else fp32",
    )
    judgements: list[Judgement] = Field(
        [],
        description="others of the same engine, by other data: the best founded first. A list and a pull "
        "show the best founded of all: by labels, by evaluation data, by calibration data, by random data",
    )
    options: BuilderOptions | None = Field(None, description="that it was built with")
    timing_cache: dict[str, Any] | None = Field(
        None, description="with which its build started, and what came of that"
    )
    peak_memory_bytes: int | None = Field(
        None, description="of the process that built it, on the host"
    )
    profiles: list[Profile]
    fixed_inputs: FixedInputs = Field(
        {}, description="inputs that were folded into it, with their value: it takes them no more"
    )
    inputs: list[TensorSpec] = Field(description="as the runtime has them")
    outputs: list[TensorSpec]
    differences: list[str] | None = Field(
        None, description="how the runtime's inputs and outputs differ from those of the model"
    )
    toolchain: dict[str, str]
    source_digest: Digest
    build: str
    created_at: datetime


class WantedEngine(Answer):
    """One precision × target of a build: what was asked, what was chosen, what came of it."""

    asked: str
    target: str
    why: str
    precision: Precision
    build_job: int
    measure_job: int
    engine: str | None = Field(description="id in the registry once it is published")
    doubts: list[str] = Field([], description="why the engine is doubtful; empty for a good one")


class BuildSummary(Answer):
    id: str
    model: str
    version: int
    state: BuildState
    precisions: list[Precision]
    targets: list[str]
    priority: int
    labels: dict[str, str]
    jobs_total: int
    jobs_done: int
    engines_total: int
    engines_done: int
    engines_doubtful: int = Field(
        0, description="of those done, how many failed a gate: no pull takes them by default"
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: Failure | None = None


class BuildView(BuildSummary):
    source: Source
    calibration: Calibration | None
    evaluation: Evaluation | None
    prune: Prune | None = None
    gates: GateSet | None = Field(None, description="that its engines are held to")
    profiles: list[Profile]
    fixed_inputs: FixedInputs = {}
    jobs: list[JobView]
    engines: list[WantedEngine]

    def name_of(self, job: JobView) -> str:
        """A job's title, with its runtime or its targets where the title alone doesn't tell them."""
        if job.target is None:
            served = {want.target for want in self.engines if job.id == want.measure_job}
            return f"{job.title} (for {', '.join(sorted(served))})" if served else job.title
        twins = [other for other in self.jobs if other.title == job.title]
        return f"{job.title} ({job.runtime})" if len(twins) > 1 else job.title


class Page(Answer):
    cursor: str | None = Field(description="pass as `cursor` for the next page; null on the last")


class BuildPage(Page):
    items: list[BuildSummary]


class EnginePage(Page):
    items: list[EngineView]


class ModelView(Answer):
    name: str
    versions: list[int]
    engines: int
    created_at: datetime


class ModelPage(Page):
    items: list[ModelView]


class VersionView(Answer):
    """A source, with the inputs that are fixed in it and the architecture that it is of."""

    version: int
    source_digest: Digest
    source_format: SourceFormat
    fixed_inputs: FixedInputs = {}
    architecture: Architecture | None = None
    engines: int
    created_at: datetime


class ModelDetail(Answer):
    name: str
    created_at: datetime
    versions: list[VersionView]
    engines: list[EngineView] = Field(description="the newest version's engines")


class Match(Answer):
    """The answer to a pull: the best engine, and why it is the best."""

    engine: EngineView
    why: str


class JobReason(Answer):
    """Why one job of a build ran or was reused."""

    job: int
    title: str
    reuse: Reuse
    why: str
    nearest: int | None = Field(description="the nearest earlier job of the same kind")
    differs: list[str] = Field(description="what differs from it, in words")


class Explanation(Answer):
    build: str
    jobs: list[JobReason]


class WorkerView(Answer):
    name: str
    host: str
    online: bool
    gpu: str | None = Field(description="the GPU's name; null for a CPU worker")
    gpu_uuid: str | None
    tags: list[str]
    queues: list[str]
    unread: list[str] = Field(
        [],
        description="those of its queues that it doesn't read, though it is there: start it again",
    )
    runtimes: dict[str, str]
    toolchain: dict[str, str]
    sandbox: dict[str, Any] = Field(
        {},
        description="what keeps its jobs to themselves, by part: whether it's enforced, and how or why not; "
        "empty until it has been tried",
    )
    job: int | None
    job_title: str | None
    started_at: datetime
    last_seen_at: datetime


class PluginRequest(Request):
    """A library to be allow-listed."""

    digest: Digest
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
    signature: Annotated[str, StringConstraints(max_length=100)] = Field(
        description="Ed25519, of the library's bytes, in base64"
    )


class PluginView(Answer):
    """A library of TensorRT plugins that builds may name."""

    digest: Digest
    name: str
    bytes: int
    key: str = Field(description="of FARM_PLUGIN_KEYS, that has signed it")
    created_at: datetime


class KeyRequest(Request):
    """A key to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["submit"], "expires_in_s": 7_776_000}]
        },
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")] = Field(
        description="who or what it is for"
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 366 * 86400)] | None = Field(
        None, description="seconds after which it opens nothing; null for never"
    )


class KeyView(Answer):
    """A key, without what makes it one."""

    id: str = Field(description="a part of the key that is no secret", examples=["7k2c9qd4mx"])
    name: str
    scopes: list[Scope]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    revoked_at: datetime | None


class NewKey(KeyView):
    """A key that was just made."""

    key: str = Field(description="the key itself, shown this once")


class KeyPage(Page):
    items: list[KeyView]


class AuditEntry(Answer):
    """A change that somebody made."""

    id: int
    at: datetime
    key_id: str | None = Field(description="the key that it was made with; null without one")
    who: str = Field(description="the key's name; the user of a command on the farm's own machine")
    label: str = Field(description="what the client calls itself: `Farm-Client`")
    address: str
    action: str = Field(examples=["submit"])
    object: str = Field(
        description="what was changed: a build, a blob, a key", examples=["01m7y8mb9kssegkq"]
    )
    details: dict[str, Any] | None


class AuditPage(Page):
    items: list[AuditEntry]


class TimingCacheView(Answer):
    """What TensorRT's builders have timed on one GPU with one toolchain."""

    gpu: str = Field(examples=["NVIDIA H200"])
    compute_capability: str = Field(examples=["sm_90"])
    tensorrt: str = Field(examples=["11.4.0.106"])
    cuda: str = Field(description="major version", examples=["13"])
    digest: Digest
    bytes: int
    revision: int
    entries: int | None = Field(description="timings in it; null where this TensorRT can't tell")
    builds: int = Field(description="that added to it, or found all in it")
    hits: int = Field(description="of these, those that found all in it and timed nothing")
    hit_rate: float = Field(description="hits by builds, 0 to 1")
    updated_at: datetime


class TargetView(Answer):
    target: str
    runtime: Runtime
    gpu: str
    compute_capability: str
    products: list[str]
    status: Literal["buildable", "waits-for-worker", "unsupported"]
    why: str
    precisions: list[Precision]


class Manifest(Answer):
    """What an engine is and where it came from; the bytes must have this digest."""

    engine: EngineView
    provenance: dict[str, Any]


class Event(Answer):
    """One server-sent event's data."""

    id: int
    at: datetime
    kind: Literal["build", "job", "phase", "log"]
    build: str | None
    job: int | None
    title: str | None = None
    state: str | None = None
    data: dict[str, Any]
