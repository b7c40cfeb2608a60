"""The API's process: granian, which sends a file from its path without copying it through Python."""

from __future__ import annotations

import gc
import os
import signal

from fastapi import FastAPI

from farm.processes import die_with_parent, end_without, take_short_turns
from farm.settings import Settings

_PARENT = "FARM_PARENT_PID"
_STOP_S = 5


def serve(host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the API until SIGTERM or SIGINT."""
    from granian import Granian
    from granian.constants import Interfaces

    os.environ[_PARENT] = str(os.getpid())
    Granian(
        "farm.api.server:app",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        websockets=False,
        log_access=False,
        workers_kill_timeout=_STOP_S,
    ).serve()


def app() -> FastAPI:
    """Granian's worker process calls this."""
    from farm.api.app import create_app

    # Granian's own supervisor may be killed; its worker must not keep the port.
    die_with_parent(signal.SIGTERM)
    if _PARENT in os.environ:
        end_without(int(os.environ[_PARENT]), grace_s=_STOP_S)
    take_short_turns()
    made = create_app(Settings())
    # What is there now stays: the collector needn't walk through it again and again.
    gc.freeze()
    return made
