"""How fast an engine is, beside what it is held against."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from farm.reports.records import (
    MOST_LISTED,
    MOST_NAMES,
    Count,
    Counts,
    Name,
    Number,
    OpenRecord,
    Text,
    Texts,
    Word,
)

Percentiles = Annotated[dict[Word, Number], Field(max_length=20)]


class Timed(OpenRecord):
    """The figures of one model, or the reason why there are none."""

    latency_ms: Percentiles | None = None
    h2d_ms: Percentiles | None = None
    compute_ms: Percentiles | None = None
    d2h_ms: Percentiles | None = None
    enqueue_ms: Percentiles | None = None
    iterations: Count | None = None
    samples_per_s: Number | None = None
    queries_per_s: Number | None = None
    reason: Text | None = None
    autocast: Word | None = None


class Throughput(OpenRecord):
    batch: Count
    samples_per_s: Number | None
    latency_p50_ms: Number | None = None
    iterations: Count | None = None
    reason: Text | None = None


class Metrics(Timed):
    """Latency and throughput of an engine, and of what it is held against."""

    batch: Count | None = None
    shapes: Annotated[dict[Name, Counts], Field(max_length=MOST_NAMES)] = {}
    throughput: Annotated[list[Throughput], Field(max_length=MOST_LISTED, fail_fast=True)] = []
    eager: Timed | None = None
    eager_reason: Text | None = None
    eager_autocast: Timed | None = None
    compiled: Timed | None = None
    cuda_graph: Timed | None = None
    speed_up: Number | None = None
    speed_up_reason: Text | None = None
    others_cpu_share: Number | None = None
    warnings: Texts = []
    #: Of the engine it is a difference, and others on the GPU may have given some back meanwhile.
    memory: Annotated[dict[Word, int | None], Field(max_length=20)] | None = None
    gpu: Annotated[dict[Word, Any], Field(max_length=50)] | None = None
    settings: Annotated[dict[Word, Any], Field(max_length=50)] | None = None
