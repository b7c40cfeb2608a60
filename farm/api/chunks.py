"""Parts of an upload in several requests."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header, Request

from farm.errors import ChunkOutOfOrder

ContentRange = Annotated[str | None, Header(alias="Content-Range", max_length=100)]
_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S+)?")


def start_of(request: Request, content_range: str | None) -> int | None:
    """Where the request's bytes begin, if it says so.

    Raises:
        ChunkOutOfOrder: what it says isn't a range, or not that of the bytes.
    """
    if content_range is None:
        return None
    found = _RANGE.fullmatch(content_range.strip())
    if not found or int(found[2]) < int(found[1]):
        raise ChunkOutOfOrder(
            f"Content-Range: {content_range!r} isn't a range", hint="send it as FIRST-LAST: 0-1023"
        )
    length = request.headers.get("content-length")
    if length is not None and int(length) != int(found[2]) - int(found[1]) + 1:
        raise ChunkOutOfOrder(
            f"Content-Range: {content_range} isn't a range of the {length} bytes sent",
            hint="send it as FIRST-LAST, both included",
        )
    return int(found[1])
