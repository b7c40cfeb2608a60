"""Read-only Flower for the farm's users, closed to other web pages."""

from __future__ import annotations

import os
from typing import Any

import flower.app
import flower.command
import flower.views
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from farm import logs
from farm.database.session import Database
from farm.errors import FarmError, KeyNeeded
from farm.local.login import PATH, Away, Form, Login, ToForm, is_browser
from farm.queue.celery_app import COLUMNS, create_celery
from farm.settings import Settings
from farm.trust.hosts import Hosts
from farm.trust.ring import Ring, UseWriter

_PATIENCE_S = 1.2
_MOST_BYTES = 2**16
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
    ring = Ring(Database(settings.database, patience_s=_PATIENCE_S))
    flower.command.Flower = _behind(Hosts(settings.hosts), Login(ring), settings)
    UseWriter(ring).start()
    create_celery(settings).start(
        [
            "flower",
            f"--address={host}",
            f"--port={port}",
            "--read_only=true",
            # Workers send events anyway, and accept no commands.
            "--enable_events=false",
            f"--tasks_columns={COLUMNS}",
            "--inspect_timeout=3000",
        ]
    )


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
                if not settings.keys_required:
                    return super().find_handler(request, **options)
                if request.path in _OWN:
                    return self.get_handler_delegate(request, _OWN[request.path], {"login": login})
                if request.path not in opens:
                    login.check(request)
            except KeyNeeded as err:
                if is_browser(request):
                    return self.get_handler_delegate(request, ToForm)
                return self.get_handler_delegate(request, _Refused, {"err": err})
            except FarmError as err:
                return self.get_handler_delegate(request, _Refused, {"err": err})
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
