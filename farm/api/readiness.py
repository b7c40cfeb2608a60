"""Readiness: checks of what a farm needs to take work: database, schema, store, disk, broker, queues."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from farm.database.migrate import require_schema
from farm.database.session import Database
from farm.errors import FarmError
from farm.fleet.workers import Fleet
from farm.settings import Settings
from farm.store import proof
from farm.store.base import RESERVE_BYTES, Store

OK = "ok"
#: Without these, work is still accepted, and waits.
WAITED_FOR = frozenset({"broker", "queues"})
_BROKER_S = 1.0
_BROKER_PORT = 6379


def checks(settings: Settings, db: Database, store: Store) -> dict[str, str]:
    """Part → ``ok``, or what is wrong with it and what to do."""
    parts: Mapping[str, Callable[[], str]] = {
        "database": lambda: _database(db),
        "schema": lambda: _schema(db),
        "store": lambda: _store(db, store),
        "disk": lambda: _disk(store),
        "broker": lambda: _broker(settings.broker),
        "queues": lambda: _queues(settings, db),
    }
    return {name: look() for name, look in parts.items()}


def _told(err: FarmError) -> str:
    return f"{err.detail} ({err.hint})" if err.hint else err.detail


def _database(db: Database) -> str:
    try:
        with db.read() as session:
            session.connection().exec_driver_sql("SELECT 1")
    except FarmError as err:
        return _told(err)
    return OK


def _schema(db: Database) -> str:
    try:
        require_schema(db)
    except FarmError as err:
        return _told(err)
    return OK


def _store(db: Database, store: Store) -> str:
    try:
        proof.prove(db, store)
        store.try_to_write()
    except FarmError as err:
        return _told(err)
    return OK


def _disk(store: Store) -> str:
    try:
        free = store.free_bytes()
    except FarmError as err:
        return _told(err)
    if free is not None and free < RESERVE_BYTES:
        return f"only {free // 10**6} MB are free for the store (free some: farm gc)"
    return OK


def _queues(settings: Settings, db: Database) -> str:
    try:
        with db.read() as session:
            unread = Fleet.load(session, ttl_s=settings.worker_ttl_s).unread_queues
    except FarmError as err:
        return _told(err)
    told = [f"{queue} ({', '.join(names)})" for queue, names in sorted(unread.items())]
    if told:
        return f"workers are online without reading their queues: {'; '.join(told)} (restart them)"
    return OK


def _broker(url: str) -> str:
    # A plain socket: the client library takes too long to give up.
    found = urlsplit(url)
    place = (found.hostname or "127.0.0.1", found.port or _BROKER_PORT)
    try:
        socket.create_connection(place, timeout=_BROKER_S).close()
    except OSError as err:
        return f"no broker answers at {place[0]}:{place[1]}: {err} (jobs wait until it is back)"
    return OK
