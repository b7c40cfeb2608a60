"""Files as responses: the server sends them from their path, without a copy through Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

_MOST_RANGES = 16  #: more than any client uses to resume; beyond it the whole file is sent


class BlobResponse(FileResponse):
    """An immutable file; an invalid range is ignored, as RFC 9110 allows."""

    def __init__(
        self, path: Path, *, etag: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(
            path, headers=immutable(etag) | dict(headers), media_type="application/octet-stream"
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


class OciBlobResponse(BlobResponse):
    """The same for OCI's clients, whose conformance suite has an invalid range refused."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        ranges = super()._parse_range_header(http_range, file_size)
        if not ranges:
            raise HTTPException(
                416,
                f"{http_range[:100]!r} isn't a range of bytes",
                headers={"Content-Range": f"bytes */{file_size}"},
            )
        return ranges


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
