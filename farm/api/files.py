"""Files as responses: the server sends them from their path, without a copy through Python."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

_MOST_RANGES = 16  #: more than any client uses to resume; beyond it the whole file is sent


class BlobResponse(FileResponse):
    """An immutable file; an invalid range is ignored, as RFC 9110 requires."""

    def __init__(self, path: Path, *, etag: str) -> None:
        super().__init__(
            path,
            headers={"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable"},
            media_type="application/octet-stream",
        )

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
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


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether a request's If-None-Match names what it would be sent."""
    if if_none_match is None:
        return False
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return if_none_match.strip() == "*" or etag in tags
