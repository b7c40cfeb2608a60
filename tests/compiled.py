"""Statements that one database has compiled serve those of all tests.

SQLAlchemy keeps what it compiles by engine, and each test has an engine of its own: a fifth of the time of
a test that runs a few jobs would be spent on compiling the same statements again.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event

from farm.database import session

#: The first engine of each kind that has connected: by then its dialect knows the server.
_first: dict[str, Engine] = {}


def share() -> None:
    """Have all databases of this process share what they compile."""
    session.create_engine = _created


def _created(*arguments: Any, **options: Any) -> Engine:
    engine = sqlalchemy.create_engine(*arguments, query_cache_size=5000, **options)
    kind = f"{engine.dialect.name}+{engine.dialect.driver}"
    if kind in _first:
        # A compiled statement is found by its dialect, too.
        engine.dialect = _first[kind].dialect
        engine._compiled_cache = _first[kind]._compiled_cache
    else:
        event.listen(engine, "connect", lambda *_: _first.setdefault(kind, engine))
    return engine
