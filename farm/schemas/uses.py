"""What a file is to the farm, by its digest."""

from __future__ import annotations

from pydantic import Field

from farm.schemas.base import Answer, Digest, Said
from farm.schemas.engines import EngineView
from farm.specs.roles import Role


class VersionUse(Answer):
    """A version whose source it is."""

    model: str
    version: int
    aliases: list[str]
    yanked: Said | None


class DataUse(Answer):
    """A build that it was given as data."""

    build: str
    model: str
    version: int
    role: Role = Field(description="`calibration` or `evaluation`")


class BlobUses(Answer):
    """Everything that refers to a file. A list's first hundred, newest first."""

    digest: Digest
    bytes: int
    engines: list[EngineView]
    sources: list[VersionUse]
    data: list[DataUse]
    others: list[str] = Field(
        default=[], description="jobs, timing caches and plugins that name it, in words"
    )
    aliases: dict[str, list[str]] = Field(
        description="of the engines' versions: `digits@7` → the aliases that name it"
    )
