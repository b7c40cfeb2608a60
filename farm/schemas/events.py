"""What happens to a build."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from farm.schemas.base import Answer


class Event(Answer):
    """One server-sent event's data."""

    id: int
    at: datetime
    kind: Literal["build", "job", "phase", "log"]
    build: str | None
    job: int | None
    title: str | None = None
    state: str | None = None
    data: dict[str, Any]
