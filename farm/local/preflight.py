"""Checks before a server command starts: faults that waiting can't fix are reported at once."""

from __future__ import annotations

import errno
import socket
import time

from farm.database.faults import is_refused
from farm.database.migrate import require_schema
from farm.database.session import Database
from farm.errors import Conflict, DatabaseUnavailable, FarmError
from farm.settings import Settings

_PORT_S = 5.0  #: how long a process that is ending may still hold the port
_LOOK_S = 0.2


def require_database(settings: Settings) -> None:
    """Return if the database has this farm's schema, or is temporarily unreachable.

    Raises:
        SchemaOutdated, DatabaseDamaged, InvalidRequest
        DatabaseUnavailable: it is reachable and refuses the connection.
    """
    db = Database(settings.database)
    try:
        require_schema(db)
    except DatabaseUnavailable as err:
        if is_refused(err):
            raise
    finally:
        db.dispose()


def require_port(host: str, port: int) -> None:
    """Return if nothing listens on this port.

    Raises:
        Conflict
        FarmError: this machine doesn't have that address.
    """
    deadline = time.monotonic() + _PORT_S
    while True:
        try:
            _bind(host, port)
            return
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise FarmError(
                    f"can't listen on {host}:{port}: {err}",
                    hint="choose an address of this machine with --host, and a port above 1023",
                ) from err
            if time.monotonic() > deadline:
                raise Conflict(
                    f"port {port} is taken on {host}",
                    hint="stop what is listening there, or choose another: --port",
                ) from err
        time.sleep(_LOOK_S)


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # Not SO_REUSEPORT, with which servers share a port: it would hide another one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
