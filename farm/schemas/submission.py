"""A submission: a source, its data, and the engines that are wanted."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from farm.schemas.base import Digest, Name, Request
from farm.schemas.labels import Labels, Note
from farm.specs import texts
from farm.specs.accuracy_goal import BUDGET_S, BudgetSeconds, LatencyRatio, Patterns
from farm.specs.gates import GateChanges
from farm.specs.goals import Aim, BatchSize, Goal
from farm.specs.options import BuilderOptions, Prune
from farm.specs.precision import CalibrationFormat, CalibrationMethod, Percentile, Precision
from farm.specs.preprocess import PRESETS, Preprocessing
from farm.specs.shapes import FixedInputs, ShapeRange
from farm.specs.source import Architecture, SourceFormat
from farm.specs.target_text import split
from farm.specs.tasks import IN_UNITS, Metric, TaskOptions


class Source(Request):
    digest: Digest
    format: SourceFormat
    architecture: Architecture | None = Field(
        None,
        description="for safetensors: the module that the weights belong to",
        examples=[{"library": "transformers", "name": "BertModel", "config": {}}],
    )

    @model_validator(mode="after")
    def _architecture_of_weights(self) -> Self:
        if (self.format is SourceFormat.SAFETENSORS) != (self.architecture is not None):
            raise ValueError(
                "safetensors need an architecture (--architecture transformers:BertModel); "
                "other formats don't take one"
            )
        return self


#: Per request. Models with more inputs are rare, and each input is stored in many rows.
_MOST_INPUTS = 512


_MOST_RANGES = 1024


RequestedProfile = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], ShapeRange],
    Field(max_length=_MOST_INPUTS),
]


_PREPROCESS = Field(
    None,
    description="how images become the model's input, where the data is a tar of them; or the name of a "
    f"preset: {', '.join(PRESETS)}",
    examples=["imagenet", PRESETS["imagenet"].changed()],
)


class Calibration(Request):
    digest: Digest
    format: CalibrationFormat = Field(
        "samples",
        description="what the file is: samples, or the calibration cache of TensorRT 10 or earlier, whose "
        "ranges are taken for int8 instead of finding them",
    )
    method: CalibrationMethod = Field(
        "auto",
        description="how ranges are found; `auto`: for each tensor, by its error on samples held out",
    )
    percentile: Percentile | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    preprocess: Preprocessing | None = _PREPROCESS
    keep_float: Patterns = Field(
        (),
        description="names of operators that stay in floats; `*` and `?` match any characters",
        examples=[["/head/*"]],
    )
    keep_quantized: Patterns = Field(
        (), description="names of operators that a search for `max_drop` leaves quantised"
    )
    budget_s: BudgetSeconds = Field(
        BUDGET_S,
        description="seconds to look for what meets the evaluation's `max_drop`; 0: plain, which is refused "
        "if it misses",
    )

    @model_validator(mode="after")
    def _percentile_is_used(self) -> Calibration:
        if self.percentile is not None and self.method not in ("auto", "percentile"):
            raise ValueError(
                f"percentile has no meaning with the method {self.method}: leave it out, or choose "
                "the method percentile"
            )
        return self

    @model_validator(mode="after")
    def _cache_needs_nothing_else(self) -> Calibration:
        if self.is_cache and (self.method, self.percentile, self.preprocess) != (
            "auto",
            None,
            None,
        ):
            raise ValueError(
                "method, percentile and preprocess are for samples: a tensorrt-cache holds the ranges "
                "themselves"
            )
        return self

    @property
    def is_cache(self) -> bool:
        """Whether these are ranges rather than samples."""
        return self.format == "tensorrt-cache"


class Evaluation(Request):
    digest: Digest
    metric: Metric | None = Field(
        None, description="task metric; requires an array `label` in the data"
    )
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="largest allowed drop of the metric, or rise of an error; beyond it the build fails. A "
        "share, but for `mae` and `rmse` in the labels' units",
    )
    max_latency_ratio: LatencyRatio | None = Field(
        None,
        description="with `max_drop`, for int8: the largest median time of a forward pass over that in fp32, "
        "both in ONNX Runtime on the CPU of the worker that calibrates; for GPUs this only stands in",
    )
    task: TaskOptions = TaskOptions()
    preprocess: Preprocessing | None = _PREPROCESS

    @model_validator(mode="after")
    def _fits_the_metric(self) -> Self:
        if self.max_drop is not None and self.max_drop > 1 and self.metric not in IN_UNITS:
            raise ValueError("max_drop is a share of the metric, 0 to 1: 0.01 is one point")
        if self.max_latency_ratio is not None and self.max_drop is None:
            raise ValueError(
                "max_latency_ratio is what int8 may take that keeps max_drop: pass max_drop too"
            )
        if self.metric is Metric.WER and self.task.space is None:
            raise ValueError(
                "wer needs task.space, the class between words (--task space=…); without words use cer"
            )
        return self


BUILD_EXAMPLE: dict[str, Any] = {
    "model": "digits",
    "source": {"digest": "sha256:" + "a" * 64, "format": "pt2"},
    "precisions": ["fp16", "int8"],
    "targets": ["sm_89", "rtx-4090", "tensorrt-rtx:sm_120", "onnxruntime:cpu"],
    "profiles": [{"image": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [64, 1, 8, 8]}}],
    "calibration": {"digest": "sha256:" + "b" * 64, "method": "auto", "batch_size": 8},
    "evaluation": {"digest": "sha256:" + "c" * 64, "metric": "top1", "max_drop": 0.01},
    "options": {"tf32": True},
    "priority": 5,
    "labels": {"team": "vision"},
}


#: Every engine for an H100, and the goal that pulls follow from then on.
BENCH_EXAMPLE: dict[str, Any] = {
    "model": "resnet50",
    "source": {"digest": "sha256:" + "a" * 64, "format": "pt2"},
    "targets": ["h100"],
    "bench": {"goal": "latency", "batch": 8},
    "calibration": {"digest": "sha256:" + "b" * 64},
    "evaluation": {"digest": "sha256:" + "c" * 64, "metric": "top1"},
}

Precisions = Annotated[list[Precision], Field(max_length=8)]
Targets = Annotated[
    list[
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=100, pattern=f"^{texts.LINE}*$"),
            BeforeValidator(texts.checked),
        ]
    ],
    Field(
        min_length=1,
        max_length=64,
        description="`GPU` or `RUNTIME:GPU`, each also with precisions of its own: `t4:fp16`, "
        "`tensorrt:h100:fp8,int8`",
    ),
]
Priority = Annotated[int, Field(ge=0, le=9, description="9 is the most urgent")]


class BenchOptions(Request):
    """How every engine of the targets is built and ranked."""

    goal: Aim | None = Field(
        None,
        description="what engines are ranked by, here and in pulls: kept for the version and the GPU. "
        "By default the goal kept before, else latency",
    )
    batch: BatchSize | None = Field(
        None,
        description="the batch to rank at; by default the profile's opt batch, or for throughput the "
        "best of those measured",
    )
    wait_for_workers: bool = Field(
        False,
        description="build also what no online worker can, once one joins; by default it is left out",
    )

    def kept_goal(self) -> Goal | None:
        """The goal to keep; None if the request sets none."""
        if self.goal is None and self.batch is None:
            return None
        return Goal(aim=self.goal or Aim.LATENCY, batch=self.batch)


class BuildRequest(Request):
    """A model version × precisions × targets."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [BUILD_EXAMPLE, BENCH_EXAMPLE]}
    )

    model: Annotated[
        Name, Field(description="a model that has this name in another case is the same one")
    ]
    source: Source
    precisions: Precisions = Field(
        [],
        description="of the targets that name none themselves: at least one, or with `bench` none for every "
        "precision",
    )
    targets: Targets
    skip_unsupported: bool = Field(
        False,
        description="leave out the engines that their target, the source or the options rule out, instead of "
        "refusing the build; `left_out` tells which, and why",
    )
    bench: BenchOptions | None = Field(
        None,
        description="build the targets in every runtime, or in the one that they name, and in every "
        "precision; what can't be built is left out, and `left_out` tells why",
    )
    profiles: Annotated[list[RequestedProfile], Field(max_length=8)] = []
    fixed_inputs: FixedInputs = Field(
        {},
        description="inputs to fix to a constant, which is folded into the graph: a number, true "
        "or false, or nested lists in the input's shape",
        examples=[{"sr": 16000}],
    )
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: GateChanges | None = Field(
        None,
        description="engines that fail a gate are published as doubtful; default: the farm's (FARM_GATES)",
    )
    options: BuilderOptions = BuilderOptions()
    prune: Prune | None = Field(
        None, description="pruning of the source before anything else; not for ONNX"
    )
    priority: Priority = 5
    labels: Labels = Field(default_factory=dict, description="of the build, and of its version")
    note: Note | None = Field(None, description="of the version, in place of an earlier one")
    new_inputs: bool = Field(
        False,
        description="accept a new version with other inputs or outputs than the one before it: otherwise "
        "409, or if only its export tells them, it is held back from pulls and aliases",
    )

    @model_validator(mode="after")
    def _has_precisions(self) -> Self:
        has_none = [one for one in self.targets if not split(one).precisions]
        if has_none and not self.precisions and self.bench is None:
            raise ValueError(
                f"no precisions for {', '.join(has_none[:5])}: name at least one, or pass `bench` for an "
                "engine in each"
            )
        return self

    @model_validator(mode="after")
    def _searches_for_its_latency(self) -> Self:
        if self.evaluation is None or self.evaluation.max_latency_ratio is None:
            return self
        asked = set(self.precisions).union(*(split(one).precisions for one in self.targets))
        if asked and Precision.INT8 not in asked:
            raise ValueError(
                "max_latency_ratio is for int8, which isn't among the precisions: add int8, or leave it out"
            )
        data = self.calibration
        if data is None or data.is_cache or not data.budget_s:
            raise ValueError(
                "max_latency_ratio needs a search: pass samples as calibration data, with a budget above 0"
            )
        return self

    @model_validator(mode="after")
    def _fixed_or_ranged(self) -> Self:
        ranges = sum(map(len, self.profiles))
        if ranges > _MOST_RANGES:
            raise ValueError(
                f"the profiles have {ranges} shape ranges in total; the limit is {_MOST_RANGES}"
            )
        both = {name for profile in self.profiles for name in profile} & self.fixed_inputs.keys()
        if both:
            raise ValueError(
                f"{', '.join(sorted(both))}: a fixed input has no profile; omit one of the two"
            )
        return self
