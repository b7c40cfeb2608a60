"""Builds, their jobs, and why each ran."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from farm.errors import InputFailed, code_of
from farm.schemas.base import Answer, Page, Said, SaidLabels
from farm.schemas.problems import Failure
from farm.schemas.submission import BenchOptions, Calibration, Evaluation, Source
from farm.specs.gates import GateSet
from farm.specs.options import Prune
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.shapes import FixedInputs, Profile
from farm.specs.states import BuildState, JobState, Reuse
from farm.stages import JobKind

#: The code of a job that failed because one before it did.
_FOLLOWS = code_of(InputFailed)


class JobView(Answer):
    id: int
    kind: JobKind
    title: str = Field(examples=["build digits:int8@sm_89"])
    key: str
    state: JobState
    reuse: Reuse = Field(
        description="whether this build ran the job, joined it or reused its result"
    )
    runtime: Runtime | None
    target: str | None = Field(examples=["tensorrt-rtx:sm_89"])
    precision: Precision | None
    attempt: int
    queue: str | None = Field(None, description="the queue for workers that can run it")
    worker: Said | None
    waits_for: str | None = Field(
        None, description="the worker a queued job waits for, if no online worker can run it"
    )
    phase: str | None = Field(
        None, description="current phase; for a queued job, what interrupted it"
    )
    progress: float | None = Field(None, description="share of the phase done, 0 to 1")
    expected_s: float | None = Field(
        None,
        description="seconds that jobs like it took, while it is live; null if none has run. Told by `GET "
        "/v1/builds/{id}`",
    )
    error: Failure | None
    facts: dict[str, Any] = Field(description="facts recorded by the stage")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def never_ran(self) -> bool:
        """Whether it failed only because a job before it did."""
        return self.error is not None and self.error.code == _FOLLOWS


class WantedEngine(Answer):
    """One precision × target of a build: the request, the choice and the result."""

    asked: Said
    target: str
    why: str
    precision: Precision
    build_job: int
    measure_job: int
    warning: str | None = Field(
        None, description="who can't run the engine of a runtime that was chosen by default"
    )
    engine: str | None = Field(description="id in the registry, once published")
    doubts: list[str] = Field([], description="why the engine is doubtful; empty if it isn't")


class LeftOut(Answer):
    """Engines that a build leaves out, and why."""

    target: str = Field(
        description="as requested, if none of the farm's runtimes supports it",
        examples=["tensorrt-rtx:sm_90"],
    )
    precisions: list[Precision]
    why: str


class BuildSummary(Answer):
    id: str
    model: str
    version: int
    state: BuildState
    precisions: list[Precision] = Field(
        description="as requested, for targets that name none themselves; empty: every precision"
    )
    targets: list[str]
    bench: BenchOptions | None = Field(
        None, description="set if the build makes every engine of its targets"
    )
    priority: int
    labels: SaidLabels
    jobs_total: int
    jobs_done: int
    engines_total: int
    engines_done: int
    engines_doubtful: int = Field(
        0, description="number of finished engines that failed a gate; not pulled by default"
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
    gates: GateSet | None = Field(None, description="gates its engines must pass")
    profiles: list[Profile]
    fixed_inputs: FixedInputs = {}
    remaining_s: float | None = Field(
        None,
        description="seconds until a live build ends, on the workers online now and after the jobs in line "
        "before its own, if each takes as long as like jobs took; null if that isn't known of each. Told by "
        "`GET /v1/builds/{id}`",
    )
    jobs: list[JobView]
    engines: list[WantedEngine]
    left_out: list[LeftOut] = Field(
        [], description="what a bench, or a build that skips the unsupported, leaves out, and why"
    )
    warnings: list[str] = Field(
        [],
        description="limits of the key that this build brings near their end (`GET /v1/me`); told when it is "
        "submitted or retried",
    )
    held_back: list[str] = Field(
        [],
        description="how its version's inputs and outputs differ from those of the version before, while "
        "nobody has said that they may (`new_inputs`): pulls and aliases don't take it",
    )

    def name_of(self, job: JobView) -> str:
        """A job's title, with its runtime or targets if the title doesn't show them."""
        if job.target is None:
            served = {want.target for want in self.engines if job.id == want.measure_job}
            return f"{job.title} (for {', '.join(sorted(served))})" if served else job.title
        twins = [other for other in self.jobs if other.title == job.title]
        return f"{job.title} ({job.runtime})" if len(twins) > 1 else job.title


class BuildPage(Page):
    items: list[BuildSummary]


class JobReason(Answer):
    """Why one job of a build ran or was reused."""

    job: int
    title: str
    reuse: Reuse
    why: str
    nearest: int | None = Field(description="the closest earlier job of the same kind")
    differs: list[str] = Field(description="what differs from it, in words")


class Explanation(Answer):
    build: str
    jobs: list[JobReason]
