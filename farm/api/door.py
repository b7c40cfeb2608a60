"""The door: what every request must satisfy before it is routed, and what every response carries.

It checks, in this order: the host name and the requesting page's origin (`farm.trust.hosts`); the key
(`farm.api.access`), and how many requests it sends (`farm.quotas.rates`); the body's media type; its size and
speed (`farm.api.bodies`); whether there is room (`farm.api.room`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm import logs
from farm.api import request_spans
from farm.api.access import Access
from farm.api.bodies import JSON_HINT, Bodies
from farm.api.problems import rendered
from farm.api.room import Places, Room
from farm.api.services import CALLER
from farm.api.web import render
from farm.errors import FarmError, RateExceeded, WrongContentType
from farm.monitoring.requests import Requests
from farm.quotas.rates import Rates
from farm.registry.oci.received import LONGEST_MANIFEST_BYTES
from farm.settings import Settings
from farm.specs.limits import Quota
from farm.trust.callers import Caller
from farm.trust.hosts import Headers, Hosts

UPLOADS = re.compile(r"/v1/blobs|/v1/uploads/[^/]+")
DOCS = "/docs"
REQUEST_ID = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
#: Paths that need no thread.
_OWN_ROOM = re.compile(r"/healthz|/docs(/.*)?|/static/.*")
_EVENTS = re.compile(r"/v1/builds/[^/]+/events")
_OCI_UPLOADS = re.compile(r"/v2/.+/blobs/uploads(/[^/]*)?")
_OCI_MANIFESTS = re.compile(r"/v2/.+/manifests/[^/]+")
_BODY_METHODS = ("POST", "PUT", "PATCH", "DELETE")
_JSON = re.compile(r"application/([a-z0-9!#$&^_.+-]+\+)?json")
_BYTES = "application/octet-stream"

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: Swagger UI uses inline styles, and icons as data URLs.
_OF_DOCS = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: A picture has its colours for dark mode in itself.
_OF_PICTURES = _NOTHING.replace(";", "; style-src 'unsafe-inline';", 1)
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Door:
    """The ASGI application in front of the API's."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        access: Access,
        requests: Requests,
        rates: Rates,
    ) -> None:
        self._app = app
        self._rates = rates
        self._access = access
        self._requests = requests
        self._hosts = Hosts(settings.hosts)
        self._bodies = Bodies(settings)
        self._room = Room(settings.max_client_share)
        self._streams = Places(
            settings.max_event_streams,
            settings.max_client_share,
            "event streams are already open",
            hint="try again in a moment, or poll the build instead",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the API has no WebSockets
            return
        began = time.monotonic()

        def count(status: int) -> None:
            # Starlette notes the route that it found; none for what was refused here.
            route = getattr(scope.get("route"), "path", None)
            took_s = time.monotonic() - began
            self._requests.answered(scope["method"], route, status, took_s)

        headers = _headers(scope["headers"])
        request_id = _request_id(headers)
        answer = _Answer(send, count, request_id, scope["path"])
        with (
            logs.handling(request_id=request_id),
            request_spans.request(scope, headers, request_id) as answer.seen,
        ):
            try:
                await self._enter(scope, receive, answer, headers)
            except FarmError as err:
                if answer.began:
                    raise
                self._requests.refused(err)
                await rendered(err, scope["path"])(scope, receive, answer)

    async def _enter(self, scope: Scope, receive: Receive, send: _Answer, headers: Headers) -> None:
        method, path = scope["method"], scope["path"]
        self._hosts.check(method, headers)
        address = (scope.get("client") or ("",))[0]
        caller = await self._access.caller(method, path, headers, address)
        scope[CALLER], client = caller, caller.key_id or address
        await self._count(caller, send)
        if method not in _BODY_METHODS:
            await self._call(path, scope, receive, send, client)
        elif UPLOADS.fullmatch(path):
            _check_type(
                headers, _is_bytes, "send the file's bytes: curl -X POST -T FILE …/v1/blobs"
            )
            await self._bodies.upload(self._app, scope, receive, send, headers, client=client)
        elif _OCI_UPLOADS.fullmatch(path):
            await self._bodies.upload(self._app, scope, receive, send, headers, client=client)
        else:
            _check_type(headers, _is_json, JSON_HINT)
            most = LONGEST_MANIFEST_BYTES if _OCI_MANIFESTS.fullmatch(path) else None
            body = await self._bodies.read(receive, headers, client=client, most=most)
            await self._call(path, scope, _once(body, receive), send, client)

    async def _count(self, caller: Caller, answer: _Answer) -> None:
        """Count a request of a key that may send only so many.

        Raises:
            RateExceeded
        """
        limit = caller.limits.of(Quota.REQUESTS)
        if limit is None or caller.key_id is None:
            return
        try:
            rate = await self._rates.take(caller.key_id, int(limit))
        except RateExceeded as err:
            answer.add(err.rate.headers)
            raise
        answer.add(rate.headers)

    async def _call(
        self, path: str, scope: Scope, receive: Receive, send: Send, client: str
    ) -> None:
        if _OWN_ROOM.fullmatch(path):
            await self._app(scope, receive, send)
        elif _EVENTS.fullmatch(path):
            with self._streams.one(client):
                await self._app(scope, receive, send)
        else:
            await self._room.within(self._app, scope, receive, send, client=client)


class _Answer:
    """A response with the headers that every response carries.

    Parameters:
        count: called with its status once it begins.
    """

    def __init__(
        self, send: Send, count: Callable[[int], None], request_id: str, path: str
    ) -> None:
        self._send = send
        self._count = count
        policy = (
            _OF_DOCS
            if path.startswith(DOCS)
            else render.POLICY
            if render.is_page(path)
            else _OF_PICTURES
            if path.endswith(".svg")
            else _NOTHING
        )
        self._own = [
            (b"content-security-policy", policy.encode()),
            (REQUEST_ID.encode(), request_id.encode()),
        ]
        self.began = False
        self.seen: request_spans.Seen = request_spans.unseen

    def add(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Have the response carry these, too."""
        self._own += headers

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began = True
            self._count(message["status"])
            self.seen(message["status"])
            headers = [*message.get("headers", ()), *_ALWAYS, *self._own]
            message = {**message, "headers": headers}
        await self._send(message)


def _headers(sent: Iterable[tuple[bytes, bytes]]) -> Headers:
    found: dict[str, list[str]] = {}
    for name, value in sent:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _request_id(headers: Headers) -> str:
    """The caller's id for the request, if it is harmless; otherwise a new one."""
    given = headers.get(REQUEST_ID, ())
    if len(given) == 1 and _ID.fullmatch(given[0]):
        return given[0]
    return os.urandom(8).hex()


def _check_type(headers: Headers, fits: Callable[[str], bool], hint: str) -> None:
    for said in headers.get("content-type", ()):
        if not fits(said.partition(";")[0].strip().lower()):
            raise WrongContentType(f"this call doesn't accept {said[:100]!r}", hint=hint)


def _is_json(kind: str) -> bool:
    return _JSON.fullmatch(kind) is not None


def _is_bytes(kind: str) -> bool:
    return kind == _BYTES


def _once(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """The body in one message, then whatever follows it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
