"""Remembers when engines were last pulled: what nobody pulls may be let go."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import EnginePull, EngineRow

#: An engine's pull is written at most this often.
_APART = timedelta(hours=1)
_MOST_KNOWN = 10_000


class Pulled:
    """The pulls that this process has answered."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._written: dict[str, datetime] = {}
        self._new: dict[str, datetime] = {}

    def note(self, engine_id: str) -> None:
        """Note a pull, to be written later: no pull waits for it."""
        at = now()
        with self._lock:
            last = self._written.get(engine_id)
            if last is None or at - last >= _APART:
                self._new[engine_id] = at

    def write(self) -> None:
        """Store the pulls noted since the last call.

        Raises:
            Unavailable: the next call stores them.
        """
        with self._lock:
            new = dict(self._new)
        if not new:
            return
        with self._db.write() as session:
            # A shared lock, like that of the foreign key: a deletion waits, or was quicker.
            there = session.scalars(
                select(EngineRow.id)
                .where(EngineRow.id.in_(new))
                .order_by(EngineRow.id)
                .with_for_update(read=True, key_share=True)
            ).all()
            if there:
                rows = [{"engine_id": one, "at": new[one]} for one in there]
                statement = _UPSERT[session.get_bind().dialect.name]
                session.connection().execute(statement, rows)
        with self._lock:
            if len(self._written) > _MOST_KNOWN:
                self._written.clear()
            self._written |= new
            self._new = {one: at for one, at in self._new.items() if new.get(one) != at}


def _upsert(statement: postgresql.Insert | sqlite.Insert) -> Any:
    later = {"at": statement.excluded.at}
    return statement.on_conflict_do_update(index_elements=["engine_id"], set_=later)


_UPSERT = {
    "sqlite": _upsert(sqlite.insert(EnginePull)),
    "postgresql": _upsert(postgresql.insert(EnginePull)),
}
