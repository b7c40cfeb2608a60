"""Jobs without their recipes and outputs, as builds reuse, create and show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Select, select

from farm.database.tables import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """A row of ``jobs``: a plain value, since creating ORM objects takes a tenth of a submission's time."""

    id: int
    key: str
    kind: str
    title: str
    state: str
    runtime: str | None
    target: str | None
    precision: str | None
    source_bytes: int | None
    queue: str
    priority: int
    place: int
    attempt: int
    cancel_requested: bool
    phase: str | None
    progress: float | None
    owner: str | None
    facts: dict[str, Any] | None
    error: dict[str, Any] | None
    trace: dict[str, str] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, columns: Mapping[Any, Any]) -> Self:
        """A row from its columns; a missing one is null, as in a row just inserted."""
        found: dict[str, Any] = {name: columns.get(name) for name in _NAMES}
        return cls(**found)


_NAMES = tuple(one.name for one in fields(JobRow))


def select_job_rows() -> Select[*tuple[Any, ...]]:
    """Select the columns of ``JobRow``; read a row with ``JobRow.of(row._mapping)``."""
    return select(*(Job.__table__.c[name] for name in _NAMES))
