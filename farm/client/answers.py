"""Limits on what is read of a response: the server may be anyone's, and malicious.

Nothing is decompressed: a few megabytes of gzip can become gigabytes in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import humanize

from farm.client.plain import plain
from farm.errors import FarmError

#: Twice a farm's longest response, an engine's layer report.
MOST_BYTES = 64 * 2**20
#: Four times what a farm sends of a stream at once.
MOST_EVENT_BYTES = 8 * 2**20
#: A problem document takes about a kilobyte.
_MOST_ERROR_BYTES = 2**20
_WHOSE_HINT = "is this an engine farm's address, and no other server in between?"


def whole(response: httpx2.Response) -> httpx2.Response:
    """A streamed response with its content; an error's is empty if it can't be read.

    Raises:
        FarmError: the content is compressed, or longer than ``MOST_BYTES``.
    """
    try:
        most = _MOST_ERROR_BYTES if response.is_error else MOST_BYTES
        content = b"".join(_at_most(response, most))
    except FarmError:
        if not response.is_error:
            raise
        content = b""  # the status is enough
    coded = {"content-encoding", "transfer-encoding"}
    return httpx2.Response(
        response.status_code,
        headers=[pair for pair in response.headers.multi_items() if pair[0] not in coded],
        content=content,
        request=response.request,
        extensions=response.extensions,
    )


def lines(response: httpx2.Response) -> Iterator[str]:
    """The lines of an event stream as they come, none longer than ``MOST_EVENT_BYTES``.

    Raises:
        FarmError: one is, or the stream is compressed.
    """
    pending = bytearray()
    for chunk in chunks(response):
        pending += chunk
        if b"\n" in chunk or b"\r" in chunk:
            found = pending.splitlines(keepends=True)
            # The line feed after a carriage return may not have arrived yet.
            pending = bytearray() if found[-1].endswith(b"\n") else found.pop()
            yield from (line.rstrip(b"\r\n").decode(errors="replace") for line in found)
        if len(pending) > MOST_EVENT_BYTES:
            raise too_long("a line of an event", MOST_EVENT_BYTES)
    if pending:
        yield pending.rstrip(b"\r").decode(errors="replace")


def chunks(response: httpx2.Response) -> Iterator[bytes]:
    """The content as it comes.

    Raises:
        FarmError: it is compressed although the request didn't accept that.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FarmError(
            f"{_named(response)} is compressed ({plain(encoding)[:40]}), "
            "which this client doesn't ask for and doesn't take",
            hint=_WHOSE_HINT,
        )
    yield from response.iter_bytes()


def too_long(what: str, most_bytes: int) -> FarmError:
    """The error for a response longer than any farm's."""
    limit = humanize.naturalsize(most_bytes, binary=True, format="%.0f")
    return FarmError(f"{what} is longer than {limit}, and wasn't read on", hint=_WHOSE_HINT)


def _at_most(response: httpx2.Response, most_bytes: int) -> Iterator[bytes]:
    done = 0
    for chunk in chunks(response):
        done += len(chunk)
        if done > most_bytes:
            raise too_long(_named(response), most_bytes)
        yield chunk


def _named(response: httpx2.Response) -> str:
    return plain(f"the answer to {response.request.method} {response.request.url}")
