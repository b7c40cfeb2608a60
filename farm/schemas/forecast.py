"""What a submission would do, and how long it would take: foretold, not done."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from farm.schemas.base import Answer, Digest, Said
from farm.schemas.builds import LeftOut
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.states import JobState, Reuse
from farm.stages import JobKind

_RANGE = "null with fewer than three like jobs"


class Seconds(Answer):
    expected: float = Field(description="median of like jobs, the nearest weighing most")
    low: float | None = Field(None, description=f"10th percentile; {_RANGE}")
    high: float | None = Field(None, description=f"90th percentile; {_RANGE}")


class Bytes(Answer):
    expected: int = Field(description="median of like jobs, the nearest weighing most")
    low: int | None = Field(None, description=f"10th percentile; {_RANGE}")
    high: int | None = Field(None, description=f"90th percentile; {_RANGE}")


class JobForecast(Answer):
    """What a job will take, as told by jobs of its kind, runtime and precision that have run."""

    jobs: int = Field(description="how many jobs this rests on")
    took: Seconds
    peak_memory: Bytes | None = Field(description="null if none of them recorded it")


class ForeseenJob(Answer):
    """A job of a build that isn't submitted."""

    key: str
    kind: JobKind
    title: str = Field(examples=["build digits:int8@sm_89"])
    reuse: Reuse = Field(
        description="`cached`: it has already succeeded; `joined`: it is on its way for another build; "
        "`ran`: it would be new"
    )
    job: int | None = Field(None, description="the job that would be reused")
    state: JobState | None = Field(None, description="of the job that would be reused")
    runtime: Runtime | None
    target: str | None = Field(examples=["tensorrt-rtx:sm_89"])
    precision: Precision | None
    queue: str
    after: list[str] = Field(description="keys of the jobs whose outputs it takes")
    waits_for: str | None = Field(
        None, description="the worker it would wait for, if no online worker can run it"
    )
    forecast: JobForecast | None = Field(
        None, description="null if it has succeeded, or if no job like it has run"
    )


class ForeseenEngine(Answer):
    """An engine that the build would make, or finds made."""

    asked: Said
    target: str
    why: str
    precision: Precision
    warning: str | None = None
    is_new: bool = Field(description="whether a job would have to run for it")


class Absent(Answer):
    """A blob that has to be uploaded before the build is submitted."""

    role: str = Field(examples=["source"])
    digest: Digest


class QueueForecast(Answer):
    """A queue in which the build would have jobs."""

    queue: str = Field(examples=["tensorrt.h200"])
    jobs: int = Field(description="of this build")
    workers: int = Field(description="online workers that read it")
    ahead: int = Field(description="jobs of other builds that come first; at most 1000 are counted")
    more_urgent: int = Field(description="of these, those with a higher priority")
    own: int = Field(description="of these, those of the same client")
    starts_s: float | None = Field(
        None,
        description="when the first of the build's jobs here would start, in seconds from now, if each job "
        "took as long as expected; null if that is unknown or never",
    )
    waits_for: str | None = Field(
        None, description="the worker its jobs would wait for, if no online worker reads it"
    )


class WallForecast(Answer):
    """When the build would end, on the workers that are online and after the jobs that come first."""

    took: Seconds | None = Field(
        description="null if it is unknown of every job. `low` and `high`: if each job took its low or its "
        "high time"
    )
    is_least: bool = Field(
        description="whether it takes longer: some jobs' time is unknown, or no online worker can run them"
    )
    unknown: int = Field(description="jobs, with those ahead, of which no like one has run")
    stuck: int = Field(description="jobs of the build that wait for a worker to join")


DRY_RUN_EXAMPLE: dict[str, Any] = {
    "model": "digits",
    "version": 2,
    "is_new_version": True,
    "jobs": [
        {
            "key": "5c1e…",
            "kind": "build",
            "title": "build digits:fp16@sm_89",
            "reuse": "ran",
            "job": None,
            "state": None,
            "runtime": "tensorrt-rtx",
            "target": "tensorrt-rtx:sm_89",
            "precision": "fp16",
            "queue": "tensorrt-rtx.cpu",
            "after": ["92ab…"],
            "waits_for": None,
            "forecast": {
                "jobs": 7,
                "took": {"expected": 8.4, "low": 6.1, "high": 12.0},
                "peak_memory": {"expected": 812000000, "low": 790000000, "high": 930000000},
            },
        }
    ],
    "engines": [
        {
            "asked": "rtx-4090",
            "target": "tensorrt-rtx:sm_89",
            "why": "first of tensorrt, tensorrt-rtx that can build for it now",
            "precision": "fp16",
            "warning": None,
            "is_new": True,
        }
    ],
    "left_out": [],
    "absent": [],
    "unchecked": [],
    "refusal": None,
    "warnings": ["4 of 5 builds in flight: wait for one to end, or cancel one"],
    "queues": [
        {
            "queue": "tensorrt-rtx.cpu",
            "jobs": 1,
            "workers": 1,
            "ahead": 3,
            "more_urgent": 0,
            "own": 1,
            "starts_s": 25.0,
            "waits_for": None,
        }
    ],
    "wall": {
        "took": {"expected": 33.4, "low": 24.0, "high": 48.0},
        "is_least": False,
        "unknown": 0,
        "stuck": 0,
    },
}


class DryRun(Answer):
    """What a submission would do. Nothing of it is kept."""

    model_config = ConfigDict(
        from_attributes=True, json_schema_extra={"examples": [DRY_RUN_EXAMPLE]}
    )

    model: str
    version: int = Field(description="the version that the build would be of")
    is_new_version: bool
    jobs: list[ForeseenJob] = Field(description="by stage: each after those it takes outputs of")
    engines: list[ForeseenEngine]
    left_out: list[LeftOut] = Field(
        [],
        description="what a bench, or a build that skips the unsupported, would leave out, and why",
    )
    absent: list[Absent] = Field([], description="what has to be uploaded first")
    unchecked: list[str] = Field(
        [], description="what a submission checks and this couldn't, in words"
    )
    refusal: str | None = Field(
        None, description="why the key's limits would refuse it now, and what to do"
    )
    warnings: list[str] = Field(
        [], description="limits of the key that it would bring near their end (`GET /v1/me`)"
    )
    queues: list[QueueForecast] = Field(description="where new and joined jobs would wait")
    wall: WallForecast
