"""Engines: what they were judged by, and which a pull takes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from farm.reports.accuracy import Accuracy
from farm.reports.description import TimingCacheUse
from farm.reports.layers import ComputeView
from farm.reports.metrics import Metrics
from farm.reports.provider import ProviderChoice
from farm.reports.quantization import QuantizationBrief
from farm.schemas.base import Answer, Digest, Page, Said
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.shapes import FixedInputs, Profile, TensorSpec
from farm.specs.states import EngineState

_SUFFIXES = {Runtime.ONNXRUNTIME: "onnx", Runtime.AOTINDUCTOR: "pt2", Runtime.TORCHSCRIPT: "pt"}


class Comparison(Answer):
    """An engine beside one that isn't compressed so: unpruned, or of a wider type.

    Of the same version, target and profiles.
    """

    engine: str
    precision: Precision
    size_ratio: float = Field(
        description="ratio of sizes in bytes; below 1 if this engine is smaller"
    )
    latency_ratio: float | None = Field(
        description="ratio of median latencies; null if they aren't comparable"
    )
    latency_reason: str | None = Field(
        None,
        description="why there is no ratio: not measured, disturbed, or measured differently",
    )
    task_drop: float | None = Field(
        description="drop of the task's metric; null unless both used the same labels"
    )
    agreement_drop: float | None = Field(
        description="drop of the top-1 agreement with the source; null unless both have one on the same data"
    )


class Judgement(Answer):
    """What an engine was found to be worth when its model was submitted once more."""

    engine: str = Field(description="id of the entry with all figures")
    data: str | None = Field(description="the data it was evaluated on")
    labelled: bool = Field(description="whether there were labels, and thus a task metric")
    samples: int | None
    state: EngineState
    doubts: list[str]
    accuracy: Accuracy
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
        None, description="how its weights were pruned: 2:4, l1:0.5; null if unpruned"
    )
    digest: Digest
    bytes: int
    accuracy: Accuracy
    metrics: Metrics | None
    metrics_reason: str | None = Field(description="why there are no metrics")
    state: EngineState = Field(
        EngineState.READY, description="doubtful engines are pulled only on request"
    )
    doubts: list[str] = Field([], description="why it is doubtful")
    yanked: Said | None = Field(
        None, description="why it, or its version, was yanked: no pull takes it by default"
    )
    compute: ComputeView | None = Field(
        None, description="types of its multiplications; null if not counted"
    )
    against: Comparison | None = Field(
        None,
        description="the gain of a pruned engine over the unpruned one, and of int8 and fp8 "
        "over fp16 or else fp32",
    )
    quantization: QuantizationBrief | None = Field(
        None,
        description="how it was quantised: all of it is at `/v1/engines/{id}/quantization`; null if it isn't",
    )
    judgements: list[Judgement] = Field(
        [],
        description="evaluations of the same engine on other data, best first. Lists and pulls "
        "show the best of all, in the order: labels, evaluation data, calibration data, random data",
    )
    options: BuilderOptions | None = Field(None, description="options it was built with")
    timing_cache: TimingCacheUse | None = Field(
        None, description="the timing cache its build started from, and how it was used"
    )
    provider: ProviderChoice | None = Field(
        None,
        description="for ONNX Runtime on GPUs: the provider options to run it with, and what was timed",
    )
    peak_memory_bytes: int | None = Field(None, description="peak host memory of the build process")
    profiles: list[Profile]
    fixed_inputs: FixedInputs = Field(
        {}, description="inputs folded into it as constants, with their values; no longer inputs"
    )
    inputs: list[TensorSpec] = Field(description="as the runtime reports them")
    outputs: list[TensorSpec]
    differences: list[str] | None = Field(
        None, description="how the runtime's inputs and outputs differ from the model's"
    )
    toolchain: dict[str, str]
    source_digest: Digest
    build: str
    created_at: datetime

    def file_name(self, *, with_runtime: bool = False) -> str:
        """``digits-v1-int8-sm_89.engine``, or ``.onnx`` for ONNX Runtime; ``…-pruned-2-4.engine``."""
        suffix = _SUFFIXES.get(self.runtime, "engine")
        runtime = f"-{self.runtime}" if with_runtime else ""
        # Distinct from the unpruned engine's name, which may be in the same folder.
        pruned = f"-pruned-{self.prune.replace(':', '-')}" if self.prune else ""
        return f"{self.model}-v{self.version}-{self.precision}-{self.gpu}{runtime}{pruned}.{suffix}"


class EnginePage(Page):
    items: list[EngineView]


class PassedOver(Answer):
    """An engine that a pull considered and didn't take."""

    engine: str
    precision: Precision
    runtime: Runtime
    gpu: str
    why: str


class Match(Answer):
    """The answer to a pull: the best engine, and why it is the best."""

    engine: EngineView
    why: str
    passed_over: list[PassedOver] | None = Field(
        None, description="the version's other engines for the GPU, and why not; with `explain`"
    )
    statement: str | None = Field(
        None,
        description="by an alias, or by default: the signed bundle of its latest move, if it is signed",
    )


class Manifest(Answer):
    """What an engine is and where it came from; the bytes must have this digest."""

    engine: EngineView
    provenance: dict[str, Any]
    files: dict[str, Digest] = Field(
        {}, description="the engine's file and its reports, as they are signed: name → digest"
    )
    signed_by: str | None = Field(
        None, description="id of the key that signed it: `/v1/signing-keys`; null if unsigned"
    )
    load: str = Field(
        "",
        description="Python source that loads the engine from the file a pull makes, and runs it",
    )
