"""How long keys' jobs took GPUs: added up by day, with the other counts at the end of a unit of work.

So no job that ends waits for another of its key for longer than a commit takes, and none holds what another
needs: the rows are locked in one order, before those of `tallies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from farm.database.tables import GpuTime

_ADDED = "farm.gpu_times"


def add(session: Session, client: str, ended_at: datetime, seconds: float) -> None:
    """Count a job that took a GPU for so long, if the unit of work commits."""
    added = session.info.setdefault(_ADDED, {})
    row = client, ended_at.date()
    added[row] = added.get(row, 0.0) + max(seconds, 0.0)


def settle(session: Session) -> None:
    """Write what a unit of work added."""
    added = session.info.pop(_ADDED, None)
    if added:
        session.flush()
        rows = [
            {"client": client, "day": day, "seconds": seconds}
            for (client, day), seconds in sorted(added.items())
        ]
        session.connection().execute(_ADD[session.get_bind().dialect.name], rows)


def _upsert(statement: postgresql.Insert | sqlite.Insert) -> Any:
    more = {"seconds": GpuTime.seconds + statement.excluded.seconds}
    return statement.on_conflict_do_update(index_elements=["client", "day"], set_=more)


_ADD: Mapping[str, Any] = {
    "sqlite": _upsert(sqlite.insert(GpuTime)),
    "postgresql": _upsert(postgresql.insert(GpuTime)),
}


def since(session: Session, client: str, day: date) -> float:
    """The seconds of a client's jobs that ended on this day or later."""
    found = select(func.sum(GpuTime.seconds)).where(GpuTime.client == client, GpuTime.day >= day)
    return session.scalar(found) or 0.0
