"""Read-only Flower for the farm's users, closed to other web pages."""

from __future__ import annotations

import os
from typing import Any

import flower.app
import flower.command
import flower.views
import flower.views.tasks
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from farm import logs
from farm.database.session import Database
from farm.errors import FarmError, KeyNeeded
from farm.local.flower.links import SCRIPT, Linked, Script
from farm.local.flower.mirror import Mirror
from farm.local.flower.queues import Filled, Queues
from farm.local.flower.tasks import COLUMNS, Attempts, AttemptTask
from farm.local.login import PATH, Away, Form, Login, ToForm, is_browser
from farm.queue.celery_app import create_celery
from farm.settings import Settings
from farm.trust.hosts import Hosts
from farm.trust.ring import Ring, UseWriter

_PATIENCE_S = 1.2
_MOST_BYTES = 2**16
_MOST_TASKS, _MOST_WORKERS = 10_000, 1_000
_FORGET_WORKERS_S = 86_400
_OWN = {PATH: Form, "/logout": Away}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def run(host: str = "127.0.0.1", port: int = 5555) -> None:
    """Run Flower read-only: tasks sent from it would bypass the database."""
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, settings.log_file)
    # Without this, Flower's own API asks for a login. It also lets every page read it: hence _set_headers.
    os.environ.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
    flower.views.BaseHandler.set_default_headers = _set_headers
    flower.views.tasks.TASK_COLUMNS |= COLUMNS
    AttemptTask.farm_url = settings.public_url
    db = Database(settings.database, patience_s=_PATIENCE_S)
    ring, queues = Ring(db), Queues(ttl_s=settings.worker_ttl_s)
    _know(queues)
    behind = _behind(Hosts(settings.hosts), Login(ring), settings)
    flower.command.Flower = _mirrored(behind, db, queues)
    UseWriter(ring).start()
    create_celery(settings).start(
        [
            "flower",
            f"--address={host}",
            f"--port={port}",
            "--read_only=true",
            # Workers send events anyway, and accept no commands.
            "--enable_events=false",
            f"--tasks_columns={','.join(COLUMNS)}",
            f"--max_tasks={_MOST_TASKS}",
            f"--max_workers={_MOST_WORKERS}",
            f"--purge_offline_workers={_FORGET_WORKERS_S}",
            "--inspect_timeout=3000",
        ]
    )


def _know(queues: Queues) -> None:
    """Have Flower's pages list all the farm's queues, not those alone that a worker reads now."""
    handler = flower.views.BaseHandler
    broker = handler.get_broker
    handler.get_active_queue_names = lambda _: list(queues.names)
    handler.get_broker = lambda self: Filled(broker(self), queues)


def _mirrored(behind: type[Any], db: Database, queues: Queues) -> type[Any]:
    """Flower's application with what the database knows."""

    class Mirrored(behind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, ui_modules={"Template": Linked})
            self.events.state = Attempts(
                max_tasks_in_memory=_MOST_TASKS, max_workers_in_memory=_MOST_WORKERS
            )
            self._mirror = Mirror(db, self.events.state, queues, self.io_loop)

        def start(self) -> None:
            self._mirror.start()
            super().start()

    return Mirrored


def _set_headers(handler: RequestHandler) -> None:
    """Flower's headers without `Access-Control-Allow-Origin: *`."""
    for name, value in _HEADERS.items():
        handler.set_header(name, value)


def _behind(hosts: Hosts, login: Login, settings: Settings) -> type[Any]:
    """Flower's application behind the same checks as the API."""
    opens = {"/healthcheck"} | (set() if settings.metrics_need_key else {"/metrics"})

    class Guarded(flower.app.Flower):  # type: ignore[misc]
        def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
            # Requests are small; by default Tornado buffers up to 100 MB in memory.
            request.connection.set_max_body_size(_MOST_BYTES)  # type: ignore[union-attr]
            sent = {name.lower(): request.headers.get_list(name) for name in request.headers}
            try:
                hosts.check(request.method or "", sent)
                if settings.keys_required and request.path in _OWN:
                    return self.get_handler_delegate(request, _OWN[request.path], {"login": login})
                if settings.keys_required and request.path not in opens:
                    login.check(request)
            except KeyNeeded as err:
                if is_browser(request):
                    return self.get_handler_delegate(request, ToForm)
                return self.get_handler_delegate(request, _Refused, {"err": err})
            except FarmError as err:
                return self.get_handler_delegate(request, _Refused, {"err": err})
            if request.path == SCRIPT:
                return self.get_handler_delegate(request, Script)
            return super().find_handler(request, **options)

    return Guarded


class _Refused(RequestHandler):
    """Answers every request that the checks refuse."""

    def initialize(self, err: FarmError) -> None:
        self._err = err

    def set_default_headers(self) -> None:
        _set_headers(self)

    def check_xsrf_cookie(self) -> None:
        """Nothing to check: it changes nothing."""

    def prepare(self) -> None:
        self.set_status(self._err.status)
        if isinstance(self._err, KeyNeeded):
            self.set_header("WWW-Authenticate", 'Bearer realm="engine farm"')
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self._err.detail}\n{self._err.hint or ''}\n")
