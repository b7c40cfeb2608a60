"""Files as responses: in large chunks while few are sent, else by the server from their path; or as they
come out of a store elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
from starlette.types import Message, Receive, Scope, Send

OCTETS = "application/octet-stream"
_MOST_RANGES = 16  #: more than any client uses to resume; beyond it the whole file is sent
#: The server itself sends files in pieces of 128 KiB, with a change of threads for each.
_LARGE_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
#: Smaller files are sent as quickly either way.
_LARGE_FILE_BYTES = 16 << 20
#: A client that stops reading keeps six large chunks in memory. Beside many, the server's own way is as fast.
_large = threading.BoundedSemaphore(8)


class BlobResponse(FileResponse):
    """An immutable file; an invalid range is ignored, as RFC 9110 allows."""

    def __init__(
        self,
        path: Path,
        *,
        etag: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        media_type: str = OCTETS,
    ) -> None:
        stat = path.stat()
        super().__init__(
            path,
            headers=immutable(etag) | dict(headers),
            media_type=media_type,
            stat_result=stat,
        )
        self._is_large = stat.st_size >= _LARGE_FILE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it: in large chunks if it is large and not many others are sent so."""
        if not self._is_large or not _large.acquire(blocking=False):
            await super().__call__(scope, receive, send)
            return
        try:
            self.chunk_size = _LARGE_BYTES
            # Without the extension by which the server would send the file itself.
            await super().__call__({**scope, "extensions": {}}, receive, _Tapering(send))
        finally:
            _large.release()

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        return cls.ranges(http_range, file_size)

    @classmethod
    def ranges(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        """What a client asks for, each from its first byte to before its last; none for the whole file.

        Raises:
            HTTPException: 416.
        """
        if http_range.count(",") >= _MOST_RANGES:
            return []
        try:
            ranges = super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable:
            raise HTTPException(
                416,
                f"the file has {file_size} bytes, none of them in the requested range",
                headers={"Content-Range": f"bytes */{file_size}"},
            ) from None
        return ranges


class OciBlobResponse(BlobResponse):
    """The same for OCI's clients, whose conformance suite has an invalid range refused."""

    @classmethod
    def ranges(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        ranges = super().ranges(http_range, file_size)
        if not ranges:
            raise HTTPException(
                416,
                f"{http_range[:100]!r} isn't a range of bytes",
                headers={"Content-Range": f"bytes */{file_size}"},
            )
        return ranges


class StreamedResponse(Response):
    """A blob of a store elsewhere, as it comes; of several ranges the whole of it, as RFC 9110 allows.

    Parameters:
        read: the bytes from a first one to before another.
        kind: parses ranges.
        link: where a client may fetch it from the store itself: it is sent there.
    """

    def __init__(
        self,
        read: Callable[[int, int], Iterator[bytes]],
        size: int,
        *,
        etag: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        media_type: str = OCTETS,
        kind: type[BlobResponse] = BlobResponse,
        link: str | None = None,
    ) -> None:
        all_headers = {"Accept-Ranges": "bytes", **immutable(etag), **headers}
        super().__init__(headers=all_headers, media_type=media_type)
        self._read = read
        self._size = size
        self._etag = etag
        self._kind = kind
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A blob that is gone is refused before anything is sent."""
        if self._link is not None and scope["method"] != "HEAD":
            headers = {"Location": self._link, "Cache-Control": "private, no-store"}
            await Response(status_code=307, headers=headers)(scope, receive, send)
            return
        asked = self._asked(Headers(scope=scope))
        start, stop = asked or (0, self._size)
        sent = {name: value for name, value in self.headers.items() if name != "content-length"}
        sent["content-length"] = str(stop - start)
        if asked:
            sent["content-range"] = f"bytes {start}-{stop - 1}/{self._size}"
        status = 206 if asked else 200
        if scope["method"] == "HEAD":
            await Response(status_code=status, headers=sent)(scope, receive, send)
            return
        chunks = self._read(start, stop)
        first = await run_in_threadpool(next, chunks, b"")
        body = StreamingResponse(chain([first], chunks), status, sent)
        await body(scope, receive, send)

    def _asked(self, headers: Headers) -> tuple[int, int] | None:
        asked, unchanged = headers.get("range"), headers.get("if-range")
        if asked is None or unchanged not in (None, self._etag):
            return None
        ranges = self._kind.ranges(asked, self._size)
        return ranges[0] if len(ranges) == 1 else None


class _Tapering:
    """Sends the last megabyte or two in small chunks.

    The server queues four chunks. Those that a client doesn't read stay there after the call has ended, which
    would free its place among the large ones.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._left = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._left = int(Headers(raw=message["headers"])["content-length"])
            await self._send(message)
            return
        body: bytes = message["body"]
        self._left -= len(body)
        piece_bytes = _LARGE_BYTES if self._left >= _LARGE_BYTES else _SMALL_BYTES
        while len(body) > piece_bytes:
            await self._send({**message, "body": body[:piece_bytes], "more_body": True})
            body = body[piece_bytes:]
        await self._send({**message, "body": body})


def immutable(etag: str) -> dict[str, str]:
    """The headers of what never changes."""
    return {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable"}


def not_modified(etag: str, if_none_match: str | None) -> Response | None:
    """304 if the client has this already."""
    if if_none_match is None:
        return None
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    if etag not in tags and tags != ["*"]:
        return None
    return Response(status_code=304, headers={"ETag": etag})
