"""Models and their versions."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from farm.schemas.aliases import AliasView
from farm.schemas.base import Answer, Digest, Page
from farm.schemas.engines import EngineView
from farm.specs.shapes import FixedInputs
from farm.specs.source import Architecture, SourceFormat


class ModelView(Answer):
    name: str
    labels: dict[str, str] = {}
    note: str | None = None
    versions: list[int]
    engines: int
    created_at: datetime


class ModelPage(Page):
    items: list[ModelView]


class VersionView(Answer):
    """A source, with the inputs that are fixed in it and the architecture that it is of."""

    version: int
    source_digest: Digest
    source_format: SourceFormat
    fixed_inputs: FixedInputs = {}
    architecture: Architecture | None = None
    labels: dict[str, str] = {}
    note: str | None = None
    engines: int
    yanked: str | None = Field(None, description="why no pull takes it by default")
    changes: list[str] = Field(
        [], description="how its inputs and outputs differ from those of the version before it"
    )
    held_back: bool = Field(
        False,
        description="nobody has said that they may (`new_inputs`): no pull takes it by default, "
        "and no alias names it",
    )
    created_at: datetime


class ModelDetail(Answer):
    name: str
    created_at: datetime
    labels: dict[str, str] = {}
    note: str | None = None
    aliases: list[AliasView] = []
    versions: list[VersionView]
    engines: list[EngineView] = Field(description="the newest version's engines")
