"""What is answered when something fails."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from farm.schemas.base import Answer


class Problem(BaseModel):
    """RFC 9457 ``application/problem+json``."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="error code in kebab case, stable for scripts")
    detail: str
    hint: str | None = Field(None, description="what to do next")


class Failure(Answer):
    """Why a job failed."""

    code: str
    detail: str
    hint: str | None = None


def field_of(location: Sequence[int | str]) -> str:
    """The field that Pydantic complains of, as who sent it knows it: ``targets.0``; empty for all of it."""
    where = location[1:] if location[:1] and location[0] in ("body", "query", "path") else location
    return ".".join(str(part) for part in where if part != "[key]")
