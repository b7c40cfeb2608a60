"""Pooled connections are checked before they are used: a database that was restarted goes unnoticed.

SQLAlchemy's own check is a round trip for each unit of work. A connection that worked a moment ago needs none
unless the server has sent something since, as it does when it ends the connection.
"""

from __future__ import annotations

import math
import select
import time
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

_IDLE_S = 5.0  #: after which a network may have dropped a connection without a word
_USED = "farm.used"


def keep_working(engine: Engine) -> None:
    """Have a Postgres engine replace broken connections when they are taken from its pool."""

    @event.listens_for(engine, "checkin")
    def used(_connection: object, entry: ConnectionPoolEntry) -> None:
        entry.info[_USED] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: Any, entry: ConnectionPoolEntry, _taken: object) -> None:
        idle_s = time.monotonic() - entry.info.get(_USED, math.inf)  # a new one has just answered
        if idle_s < _IDLE_S and not _has_word(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as err:
            raise InvalidatePoolError(str(err)) from err


def _has_word(connection: Any) -> bool:
    """Whether something came over a connection that nothing was asked of, or it is closed."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
