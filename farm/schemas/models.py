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
    engines: int
    yanked: str | None = Field(None, description="why no pull takes it by default")
    created_at: datetime


class ModelDetail(Answer):
    name: str
    created_at: datetime
    aliases: list[AliasView] = []
    versions: list[VersionView]
    engines: list[EngineView] = Field(description="the newest version's engines")
