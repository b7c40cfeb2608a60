"""A bench: every engine of a model for one GPU in one table, and the best of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from farm.reports.accuracy import Accuracy
from farm.schemas.base import Answer, Digest
from farm.schemas.builds import LeftOut
from farm.schemas.labels import Labels
from farm.schemas.problems import Failure
from farm.schemas.submission import (
    BenchOptions,
    Calibration,
    Evaluation,
    Precisions,
    Priority,
    RequestedProfile,
    Targets,
)
from farm.specs.gates import GateChanges
from farm.specs.goals import Aim, BatchSize
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.states import EngineState, JobState

MODEL_BENCH_EXAMPLE: dict[str, Any] = {"targets": ["h100"], "goal": "latency", "batch": 8}


class ModelBench(BenchOptions):
    """A bench of a version that the farm has. What isn't given is as in the version's builds."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [MODEL_BENCH_EXAMPLE]})

    targets: Targets
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="by default the newest"
    )
    precisions: Precisions = Field([], description="only these; by default every precision")
    profiles: Annotated[list[RequestedProfile], Field(max_length=8)] | None = None
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: GateChanges | None = None
    options: BuilderOptions | None = None
    priority: Priority = 5
    labels: Labels = Field(default_factory=dict)


class BenchGoal(Answer):
    aim: Aim
    batch: BatchSize | None = Field(
        description="null: the profile's opt batch, or for throughput the best of those measured"
    )
    followed: bool = Field(description="whether pulls of this version for this GPU follow it")


class BenchRow(Answer):
    """One engine, or one that isn't there yet or couldn't be built."""

    target: str = Field(examples=["aotinductor:sm_90"])
    runtime: Runtime
    runtime_version: str | None = None
    precision: Precision
    prune: str | None = None
    engine: str | None = Field(None, description="id in the registry; null if there is none")
    digest: Digest | None = None
    state: EngineState | JobState = Field(
        description="of the engine, or else of the job that it takes"
    )
    place: int | None = Field(
        None, description="1 for the winner; null if it can't win, or nothing could be compared"
    )
    latency_ms: float | None = Field(
        None, description="median latency at the goal's batch, with a CUDA graph if that is faster"
    )
    batch: int | None = Field(None, description="the batch of `latency_ms`")
    cuda_graph: bool | None = Field(
        None, description="whether `latency_ms` is that of a CUDA graph; null if unknown"
    )
    samples_per_s: float | None = None
    samples_batch: int | None = Field(None, description="the batch of `samples_per_s`")
    speed_up_over_best: float | None = Field(
        None, description="over the best of PyTorch at the same precision, on the same GPU"
    )
    accuracy: Accuracy | None = None
    bytes: int | None = None
    doubts: list[str] = Field([], description="the gates it failed")
    passed_over: str | None = Field(None, description="why it can't win")
    error: Failure | None = Field(None, description="why it couldn't be built or measured")


class Bench(Answer):
    """A model version's engines for one GPU, best first."""

    model: str
    version: int
    gpu: str
    goal: BenchGoal
    rows: list[BenchRow]
    winner: str | None = Field(description="the engine that a pull takes; null if none can be")
    why: str = Field(description="why it won, or why nothing did")
    left_out: list[LeftOut] = Field([], description="what the newest bench didn't build, and why")
