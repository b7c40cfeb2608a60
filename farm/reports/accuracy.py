"""How near an engine's outputs are to its source's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from farm.reports.records import MOST_NAMES, Count, Interval, Name, Number, OpenRecord, Word


class Task(OpenRecord):
    metric: Word | None = None
    source: Number
    engine: Number
    drop: Number
    engine_interval: Interval | None = None
    drop_interval: Interval | None = None


class Accuracy(OpenRecord):
    """How near an engine's outputs are to its source's."""

    data: Word | None = None
    measured_on: Word | None = None
    samples: Count | None = None
    task: Task | None = None
    top1_agreement: Number | None = None
    top1_interval: Interval | None = None
    top1_output: Name | None = None
    top1_or_tied: Number | None = None
    equal: Number | None = None
    equal_interval: Interval | None = None
    matched: Number | None = None
    matched_interval: Interval | None = None
    match_tolerance: Number | None = None
    cosine_mean: Number | None = None
    cosine_min: Number | None = None
    cosine_interval: Interval | None = None
    relative_error: Number | None = None
    max_abs_error: Number | None = None
    all_nan: Annotated[list[Name], Field(max_length=MOST_NAMES, fail_fast=True)] = []
    outputs: Annotated[list[dict[Word, Any]], Field(max_length=MOST_NAMES, fail_fast=True)] = []
    batch_invariance: Annotated[dict[Word, Number | bool | None], Field(max_length=20)] | None = (
        None
    )
