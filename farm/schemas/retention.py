"""Rules of what is kept, and what they delete."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from farm.schemas.base import Answer, Request, Said
from farm.schemas.deletion import Deletion
from farm.specs.retention import Retention


class KeptVersion(Answer):
    """A version that keeps its engines."""

    version: int
    why: list[str] = Field(examples=[["prod names it", "among the 3 newest"]])


class RetentionView(Answer):
    """What is kept of a model."""

    model: str
    rule: Retention
    is_default: bool = Field(description="whether it is the farm's, FARM_RETENTION")
    set_by: Said | None
    set_at: datetime | None
    kept: list[KeptVersion] = Field(description="versions whose engines stay")


class RetentionRequest(Request):
    """Which rules to apply now."""

    dry_run: bool = Field(False, description="only report what would be deleted")


class Retired(Answer):
    """What a rule deleted, or would delete."""

    model: str
    why: str
    deletion: Deletion


class RetentionReport(Answer):
    """What the rules deleted, or would delete, of all models."""

    dry_run: bool
    items: list[Retired]
    freed_bytes: int
