"""What a farm needs to take work."""

from __future__ import annotations

from pydantic import Field

from farm.schemas.base import Answer


class Readiness(Answer):
    """Whether the farm can take work."""

    status: str = Field(description="`ready`, or `degraded` if jobs would wait")
    checks: dict[str, str] = Field(description="part → `ok`, or what is wrong with it")
