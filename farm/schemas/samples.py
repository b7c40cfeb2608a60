"""What a job used over its time."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from farm.schemas.base import Answer


class AttemptSamples(Answer):
    """Samples of one attempt: the first value of each list is of the first sample, and so on.

    Values of the GPU are of all its processes, and null where it doesn't report them.
    """

    attempt: int
    began_at: datetime
    at_s: list[float] = Field(description="seconds since `began_at`")
    cpus: list[float] = Field(description="CPUs in use, on average since the sample before")
    memory_bytes: list[int] = Field(
        description="resident memory of the job's processes: the most since the sample before"
    )
    gpu_share: list[float | None] = Field(
        [], description="share of the time in which the GPU ran a kernel; empty on a CPU worker"
    )
    gpu_memory_bytes: list[int | None] = []
    gpu_power_w: list[float | None] = []
    gpu_clock_mhz: list[float | None] = Field([], description="of the streaming multiprocessors")


class JobSamples(Answer):
    job: int
    attempts: list[AttemptSamples] = Field(
        description="oldest first; without those that ended before their first sample"
    )
