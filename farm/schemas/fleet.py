"""Workers, what they can build, and what they have timed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from farm.schemas.base import Answer, Digest, Said
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.stages import JobKind


class WorkerJob(Answer):
    """A job that a worker runs."""

    id: int
    title: str


class WorkerView(Answer):
    name: Said
    host: Said
    online: bool
    gpu: str | None = Field(description="the GPU's name; null for a CPU worker")
    gpu_uuid: str | None
    tags: list[str]
    slots: int = Field(1, description="how many jobs it runs at once")
    queues: list[str]
    unread: list[str] = Field(
        [],
        description="queues that it doesn't read although it is online: restart it",
    )
    runtimes: dict[str, str]
    toolchain: dict[str, str]
    sandbox: dict[str, Any] = Field(
        {},
        description="job isolation by part: whether it is enforced, and how or why not; "
        "empty until tested",
    )
    job: int | None = Field(description="the job it has run longest; `jobs` has all of them")
    job_title: str | None
    jobs: list[WorkerJob] = Field([], description="the jobs it runs, the longest running first")
    started_at: datetime
    last_seen_at: datetime

    @property
    def running(self) -> list[WorkerJob]:
        """The jobs it runs, also by a farm that tells of one alone."""
        if self.jobs or self.job is None:
            return self.jobs
        return [WorkerJob(id=self.job, title=self.job_title or "")]


class QueueView(Answer):
    """A queue of jobs that only certain workers read."""

    queue: str = Field(examples=["tensorrt.rtx-4090"])
    jobs: int = Field(description="number of jobs that wait in it")
    oldest_s: float = Field(description="how long the oldest has waited, in seconds; 0 if empty")
    workers: int = Field(description="number of online workers that read it")
    waits_for: str | None = Field(
        description="the worker it needs, if it has jobs and no online worker reads it"
    )


class RunningJob(Answer):
    """A job that a worker runs now."""

    id: int
    title: str
    kind: JobKind
    worker: Said | None
    attempt: int
    phase: str | None
    progress: float | None = Field(description="share of the phase done, 0 to 1")
    started_at: datetime | None
    builds: list[str] = Field(description="the builds that need it")


class NowView(Answer):
    """The farm at one moment."""

    workers: list[WorkerView]
    queues: list[QueueView] = Field(description="the longest wait first")
    running: list[RunningJob] = Field(description="the longest running first; at most 200")


class TimingCacheView(Answer):
    """What TensorRT's builders have timed on one GPU with one toolchain."""

    gpu: str = Field(examples=["NVIDIA H200"])
    compute_capability: str = Field(examples=["sm_90"])
    tensorrt: str = Field(examples=["11.4.0.106"])
    cuda: str = Field(description="major version", examples=["13"])
    digest: Digest
    bytes: int
    revision: int
    entries: int | None = Field(
        description="number of timings; null if this TensorRT doesn't report it"
    )
    builds: int = Field(description="number of builds that used it")
    hits: int = Field(description="number of builds that found every entry and timed nothing")
    hit_rate: float = Field(description="hits / builds, 0 to 1")
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
