"""Two versions of a model beside each other."""

from __future__ import annotations

from pydantic import Field

from farm.schemas.base import Answer
from farm.schemas.engines import EngineView


class ComparedGpu(Answer):
    """What a pull for a GPU gets of each of two versions; ratios and drops are of `b` beside `a`."""

    gpu: str
    a: EngineView | None = Field(description="null if this version has no engine for it")
    b: EngineView | None
    size_ratio: float | None
    latency_ratio: float | None = Field(
        description="of the median latencies; below 1 if `b` is faster"
    )
    latency_reason: str | None = Field(description="why there is no ratio")
    task_drop: float | None = Field(
        description="drop of the task's metric from `a` to `b` on the same evaluation data"
    )
    task_reason: str | None = Field(description="why there is no drop")


class Compared(Answer):
    model: str
    a: int
    b: int
    gpus: list[ComparedGpu]
