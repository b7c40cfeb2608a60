"""Request bodies, limited in size and in the time they may take to arrive.

A JSON body is read whole before its call gets a thread, so that a slow client holds none. Uploads are
streamed to their call.
"""

from __future__ import annotations

import time

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.api.room import Places, Shares
from farm.errors import Busy, FarmError, InvalidRequest, TooLarge, TooSlow, WrongContentType
from farm.settings import Settings
from farm.specs import durations
from farm.trust.hosts import Headers

#: Total size of the JSON bodies being read at once.
_MOST_HELD_BYTES = 64 * 2**20
#: How long a body may be slower than the minimum rate.
_GRACE_S = 10.0
JSON_HINT = "send JSON, with Content-Type: application/json"


class Bodies:
    """Reads request bodies within the API's limits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held = 0
        share = settings.max_client_share
        self._shares = Shares(_MOST_HELD_BYTES, share)
        self._uploads = Places(settings.max_uploads, share, "uploads are already in progress")

    async def upload(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        *,
        client: str,
    ) -> None:
        """Stream a body to its call.

        Raises:
            Busy, TooMany, TooLarge, InvalidRequest
            TooSlow: raised in the call that reads it.
        """
        if _announced(headers) > self._settings.max_upload_bytes:
            raise TooLarge(f"blobs are limited to {self._settings.max_upload_bytes} bytes")
        with self._uploads.one(client):
            await app(scope, _Paced(receive, self._settings), send)

    async def read(
        self, receive: Receive, headers: Headers, *, client: str, most: int | None = None
    ) -> bytes:
        """A whole JSON body.

        Parameters:
            most: its longest size in bytes, by default as the settings have it.

        Raises:
            TooLarge: the rest isn't read.
            TooSlow, Busy, TooMany, WrongContentType, InvalidRequest
        """
        most = self._settings.max_request_bytes if most is None else most
        if _announced(headers) > most:
            raise _too_large(most)
        paced, body, held = _Paced(receive, self._settings), bytearray(), 0
        try:
            while True:
                message = await paced()
                if message["type"] == "http.disconnect":
                    raise InvalidRequest("the request was aborted", hint="send it again in full")
                piece = message.get("body", b"")
                self._shares.take(client, "too many large requests from this client", len(piece))
                held += len(piece)
                self._held += len(piece)
                if held > most:
                    raise _too_large(most)
                if self._held > _MOST_HELD_BYTES:
                    raise Busy("too many large requests at once")
                body += piece
                if not message.get("more_body", False):
                    break
        finally:
            self._held -= held
            self._shares.give_back(client, held)
        if body and "content-type" not in headers:
            raise WrongContentType("the request has a body but no Content-Type", hint=JSON_HINT)
        return bytes(body)


def _too_large(most: int) -> FarmError:
    return TooLarge(
        f"requests are limited to {most} bytes",
        hint="keep data in the model or upload it as a blob; the limit is FARM_MAX_REQUEST_BYTES "
        "on the API",
    )


def _announced(headers: Headers) -> int:
    """The request's Content-Length; 0 if it has none."""
    said = headers.get("content-length", ("0",))[0]
    if not (said.isascii() and said.isdigit()):
        raise InvalidRequest(f"Content-Length: {said[:50]!r} isn't a number of bytes")
    return int(said[:30])


class _Paced:
    """A body that may neither stall nor be too slow on average.

    Raises:
        TooSlow
    """

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._idle_s = settings.body_idle_s
        self._rate = settings.body_min_bytes_per_s
        self._bytes = 0
        self._waited_s = 0.0  #: time spent waiting for the client, not for the disk
        self._ended = False

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        began = time.monotonic()
        with anyio.move_on_after(self._idle_s) as scope:
            message = await self._receive()
        if scope.cancelled_caught:
            raise TooSlow(f"the request body stalled for {durations.told(self._idle_s)}")
        self._waited_s += time.monotonic() - began
        self._bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if not self._ended and self._waited_s > _GRACE_S + self._bytes / max(self._rate, 1e-9):
            raise TooSlow(f"the request body arrived at less than {self._rate:g} bytes per second")
        return message
