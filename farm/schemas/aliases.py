"""Aliases: names for one version of a model, for the whole fleet."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from farm.schemas.base import Answer, Page, Request, Said
from farm.schemas.labels import Note


class Action(StrEnum):
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    DELETE = "delete"


class AliasView(Answer):
    model: str
    alias: str
    version: int
    revision: int = Field(description="number of its moves; the `ETag`, for `If-Match`")
    changed_at: datetime
    changed_by: Said
    note: Said | None = None


class AliasList(Answer):
    items: list[AliasView]


class Lack(Answer):
    """A GPU that the version before served, and why the new one can't take its place there."""

    gpu: str
    why: str


class Beside(Answer):
    """The new version's engine for a GPU beside the one it replaces."""

    gpu: str
    engine: str
    what: str | None = Field(
        None, description="its precision and runtime, in words", examples=["fp16 by tensorrt"]
    )
    replaces: str | None = Field(description="the engine that pulls took before; null without one")
    latency_ratio: float | None = Field(
        None, description="of the median latencies; below 1 if the new engine is faster"
    )
    latency_reason: str | None = None
    task_drop: float | None = Field(
        None, description="drop of the task's metric on the same evaluation data"
    )
    task_reason: str | None = None


class Move(Answer):
    """A move of an alias."""

    revision: int
    action: Action
    version: int | None = Field(description="null if the alias was deleted")
    before: int | None = Field(description="the version before; null without one")
    by: Said
    note: Said | None
    left_out: list[Lack] = Field(description="GPUs that the version before served and this doesn't")
    at: datetime


class MovePage(Page):
    items: list[Move]


class Promotion(Answer):
    """What a promotion did, or with `dry_run` would do."""

    model: str = Field("", description="its name; empty from an earlier farm")
    alias: AliasView | None = Field(description="null if nothing was changed")
    version: int
    before: int | None
    changes: list[str] = Field(
        [], description="how its inputs and outputs differ from those of the version before"
    )
    left_out: list[Lack]
    engines: list[Beside]


class PromoteRequest(Request):
    """Which version an alias is to be, and what its engines may cost beside those they replace."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    partial: bool = Field(False, description="promote it although GPUs lack an engine of it")
    new_inputs: bool = Field(
        False, description="promote it although its inputs or outputs are other ones"
    )
    note: Note | None = Field(None, description="why, for the history")
    max_slowdown: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.1, description="largest ratio of the median latencies, where they can be compared"
    )
    max_drop: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="largest drop of the task's metric on the same evaluation data"
    )


class RollbackRequest(Request):
    note: Note | None = Field(None, description="why, for the history")
