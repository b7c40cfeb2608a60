"""Search: what in the farm has this name, label, note, digest or id."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from farm.schemas.base import Answer, Digest, Page, Said, SaidLabels
from farm.specs.words import Folded

#: Words, all of which must match.
Query = Annotated[
    str,
    StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(examples=["resnet team=vision since=2026-11-01"]),
]
Moment = Annotated[
    str, StringConstraints(max_length=40), Field(examples=["2026-11-01", "2026-11-01T08:00:00Z"])
]


class Kind(Folded):
    """What is searched for, in the order of a result."""

    MODEL = "model"
    VERSION = "version"
    ENGINE = "engine"
    BUILD = "build"


class Hit(Answer):
    """Something that matches."""

    kind: Kind
    id: str = Field(description="`digits`, `digits@7`, or the id of an engine or a build")
    model: str
    version: int | None = Field(description="null for a model")
    about: Said = Field(
        description="what it is, in words", examples=["fp16 for tensorrt-rtx:sm_89"]
    )
    digest: Digest | None = Field(description="of a version's source, or an engine")
    labels: SaidLabels = Field(description="an engine's are its version's")
    note: Said | None
    created_at: datetime


class SearchPage(Page):
    items: list[Hit]
