"""The API's process: granian."""

from __future__ import annotations

import gc
import os
import resource
from typing import TYPE_CHECKING, Any

from farm import logs
from farm.processes import die_with_parent, take_short_turns
from farm.settings import Settings
from farm.tracing import spans

if TYPE_CHECKING:  # the supervisor's process does without
    from fastapi import FastAPI

_PARENT = "FARM_PARENT_PID"
_STOP_S = 5
#: Open at once, including idle ones: at this limit the API accepts no more.
_CONNECTIONS = 4096
_OTHER_FILES = 256  #: for the database, the broker, blobs, the program itself
#: For a request's headers to arrive, and for an idle connection.
_HEADERS_MS = 15_000
_HEADERS_BYTES = 2**16
#: Granian logs as the farm does.
_LOGGERS: dict[str, Any] = {
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "propagate": True}},
}


def serve(host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the API until SIGTERM or SIGINT."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings

    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, settings.log_file)
    os.environ[_PARENT] = str(os.getpid())
    files = _allow_files(_CONNECTIONS + _OTHER_FILES)
    connections = max(files // 2, min(_CONNECTIONS, files - _OTHER_FILES))
    Granian(
        "farm.api.server:app",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        websockets=False,
        backlog=connections,
        backpressure=connections,
        # Explicit: with detection, a connection has no time limit until its HTTP version is known.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(
            header_read_timeout=_HEADERS_MS, max_buffer_size=_HEADERS_BYTES
        ),
        log_access=False,
        log_dictconfig=_LOGGERS,
        workers_kill_timeout=_STOP_S,
    ).serve()


def _allow_files(wanted: int) -> int:
    """Raise this process's limit on open files as far as allowed; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def app() -> FastAPI:
    """Granian's worker process calls this."""
    # Objects that exist when it is made stay: the collector needn't traverse them, now or repeatedly.
    gc.disable()
    from farm.api.app import create_app

    # Granian's supervisor may be killed; its worker must not keep the port. On SIGTERM, the worker may wait
    # for a thread that waits for the interpreter; its supervisor then kills it after a while.
    if _PARENT in os.environ:
        die_with_parent(parent=int(os.environ[_PARENT]))
    take_short_turns()
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, settings.log_file)
    spans.configure("engine-farm-api")
    made = create_app(settings)
    gc.freeze()
    gc.enable()
    return made
