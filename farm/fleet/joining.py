"""What a machine that joins is told of the farm: where its broker, database and store are for it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Worker
from farm.errors import Conflict
from farm.fleet import workers
from farm.settings import Settings

#: Settings that a worker has as the API has them.
SHARED = (
    *("lease_ttl_s", "worker_ttl_s", "max_attempts", "retry_first_s", "retry_longest_s"),
    *("job_timeout_s", "stage_timeouts_s", "cpu_timing_share", "plugin_keys"),
)
_NETWORKED = ("redis", "rediss", "amqp", "amqps")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a worker elsewhere finds the farm's parts."""

    broker_url: str
    database_url: str
    store: str | None  #: None for the API


def places(settings: Settings, *, is_near: bool) -> Places:
    """Where a machine that joins finds the farm's parts.

    Parameters:
        is_near: whether it is the API's own machine.

    Raises:
        Conflict: what the API itself uses can't be reached from elsewhere.
    """
    if not is_near:
        if not settings.join_database_url:
            _require_network_database(settings.database)
        if not settings.join_broker_url:
            _require_network_broker(settings.broker)
    return Places(
        broker_url=settings.join_broker_url or settings.broker,
        database_url=settings.join_database_url or settings.database,
        store=settings.join_store_url or None,
    )


def require_free(session: Session, machine: str, holder: str | None, *, ttl_s: float) -> None:
    """Return unless a worker of another machine that has this name is online.

    Raises:
        WorkerNameTaken
    """
    alive = select(Worker).where(
        Worker.left_at.is_(None), Worker.last_seen_at > now() - timedelta(seconds=ttl_s)
    )
    for row in session.scalars(alive):
        if row.name.partition("@")[2] == machine and row.holder != holder:
            raise workers.taken(row, ttl_s=ttl_s)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is the machine's own wherever it is used."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _require_network_database(url: str) -> None:
    found = make_url(url)
    hint = "set FARM_JOIN_DATABASE_URL on the API to the database as other machines reach it"
    if found.get_backend_name() == "sqlite":
        raise Conflict(
            "this farm's database is SQLite, a file on the API's machine: no other machine can use it",
            hint="run the farm on Postgres (FARM_DATABASE_URL), or join from the API's own machine by "
            "http://127.0.0.1",
        )
    named = found.query.get("host", found.host or "")
    hosts = [named] if isinstance(named, str) else list(named)
    for host in hosts:
        if not host or host.startswith(("/", "@")):
            raise Conflict("the API reaches its database by a socket of its machine", hint=hint)
        if is_loopback(host.partition(":")[0] if host.count(":") == 1 else host):
            raise Conflict(
                f"the API reaches its database at {host}, which is its machine", hint=hint
            )


def _require_network_broker(url: str) -> None:
    found = urlsplit(url)
    hint = "set FARM_JOIN_BROKER_URL on the API to the broker as other machines reach it"
    host = found.hostname or ""
    if found.scheme not in _NETWORKED or not host:
        raise Conflict("the API reaches its broker by a socket of its machine", hint=hint)
    if is_loopback(host):
        raise Conflict(f"the API reaches its broker at {host}, which is its machine", hint=hint)
