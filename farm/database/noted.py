"""Events that a unit of work notes: written together at its end, by one statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from farm.database.base import Base, now
from farm.database.tables import Event

_NOTED = "farm.noted"
_WRITE = insert(Base.metadata.tables[Event.__tablename__])


def note(
    session: Session,
    *,
    kind: str,
    state: str,
    data: dict[str, Any],
    build_id: str | None = None,
    job_id: int | None = None,
) -> None:
    """Record an event of a build or a job, as of now, if the unit of work commits."""
    event = {"build_id": build_id, "job_id": job_id, "kind": kind, "state": state, "data": data}
    session.info.setdefault(_NOTED, []).append(event | {"at": now()})


def settle(session: Session) -> None:
    """Write what a unit of work noted."""
    events = session.info.pop(_NOTED, None)
    if events:
        session.flush()  # events added before these come before these
        session.connection().execute(_WRITE, events)
