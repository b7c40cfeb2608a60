"""How close an engine's outputs are to its source's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.reports.records import MOST_NAMES, Count, Interval, Name, Number, OpenRecord, Text, Word
from farm.specs.tasks import ERRORS, IN_UNITS


class Task(OpenRecord):
    """The task's metric on labelled data, of the source and of the engine, and 95 % intervals.

    A positive drop is for the worse, also where lower is better, as of an error.
    """

    metric: Word | None = None
    output: Name | None = None
    source: Number
    engine: Number
    drop: Number
    source_interval: Interval | None = None
    engine_interval: Interval | None = None
    drop_interval: Interval | None = None


def task_drop(task: Task | None, before: Task | None) -> float | None:
    """How much worse an engine does its task than another on the same labels; above 0 is for the worse.

    A share, also of errors in units of their own: then of the other's error. None if that is unknown.
    """
    if task is None or before is None or task.engine is None or before.engine is None:
        return None
    rise = task.engine - before.engine
    if task.metric in IN_UNITS:
        return round(rise / before.engine, 4) if before.engine > 0 else None
    return round(rise if task.metric in ERRORS else 0.0 - rise, 4)


class OutputAccuracy(OpenRecord):
    """One output: how many of an integer's values are equal, or how far a float's are from the source's."""

    name: Name | None = None
    kind: Word | None = None
    equal: Number | None = None
    rare: Count | None = Field(
        None, description="integers of the source other than its most common one"
    )
    rare_equal: Number | None = Field(None, description="the share of those that are equal")
    cosine_mean: Number | None = None
    relative_error: Number | None = None
    max_abs_error: Number | None = None
    not_finite: Count | None = None
    parts: Count | None = Field(
        None, description="of a float's parts along `parts_axis`, as channels, those that vary"
    )
    parts_axis: Count | None = None
    parts_lost: Count | None = Field(
        None, description="of these, the ones that a constant would resemble as much"
    )
    in_task: bool | None = Field(
        None, description="whether the task's metric reads it; null without labels"
    )


class BatchInvariance(OpenRecord):
    """Whether a row's outputs stay the same whatever rows are beside it."""

    batch: Count | None = None
    max_error: Number | None = Field(
        None, description="largest difference, as a share of the output's largest magnitude"
    )
    tolerance: Number | None = None
    holds: bool | None = None
    source_error: Number | None = Field(
        None, description="the source's own, if the engine's is large"
    )


class AtSizes(OpenRecord):
    """How close an engine is to its source at an end of its profile, on the samples' values."""

    which: Word | None = Field(None, description="`min` or `max`, of all axes but the batch's")
    relative_error: Number | None = None
    equal: Number | None = Field(None, description="share of integers, or of matched items")
    not_finite: Count | None = None
    failed: Text | None = Field(None, description="what the engine said where the source ran")
    skipped: Text | None = None


class Accuracy(OpenRecord):
    """How close an engine's outputs are to its source's. A figure is null if no output has it."""

    data: Word | None = None
    measured_on: Word | None = None
    samples: Count | None = None
    data_warnings: Annotated[list[Text], Field(max_length=MOST_NAMES, fail_fast=True)] = Field(
        [], description="what looks wrong with the data, by their values"
    )
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
    all_empty: Annotated[list[Name], Field(max_length=MOST_NAMES, fail_fast=True)] = Field(
        [],
        description="outputs without a value on any of the data, so that nothing in them was compared",
    )
    outputs: Annotated[list[OutputAccuracy], Field(max_length=MOST_NAMES, fail_fast=True)] = []
    batch_invariance: BatchInvariance | None = None
    at_sizes: Annotated[list[AtSizes], Field(max_length=MOST_NAMES, fail_fast=True)] = []
