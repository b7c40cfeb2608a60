"""What is answered when something fails."""

from __future__ import annotations

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
