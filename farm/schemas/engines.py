"""Engines: what they were judged by, and which a pull takes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from farm.reports.layers import ComputeView
from farm.schemas.base import Answer, Digest, Page
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.shapes import FixedInputs, Profile, TensorSpec
from farm.specs.states import EngineState


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


class EnginePage(Page):
    items: list[EngineView]


class Match(Answer):
    """The answer to a pull: the best engine, and why it is the best."""

    engine: EngineView
    why: str


class Manifest(Answer):
    """What an engine is and where it came from; the bytes must have this digest."""

    engine: EngineView
    provenance: dict[str, Any]
