"""Answers with a blob's bytes: by ETag and Range, and never with a damaged file."""

from __future__ import annotations

import pathlib
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Header, Response

from farm.api.files import BlobResponse, not_modified
from farm.api.services import Services, problems
from farm.daemon import scrub
from farm.errors import BlobDamaged, NotFound

IfNoneMatch = Annotated[str | None, Header()]
#: What such an operation may answer, for its description.
ANSWERS: dict[int | str, dict[str, Any]] = {
    **problems(404, 416),
    200: {
        "content": {"application/octet-stream": {}},
        "description": "the file, byte for byte",
    },
    206: {
        "content": {"application/octet-stream": {}, "multipart/byteranges": {}},
        "description": "the requested range or ranges",
    },
    304: {"description": "If-None-Match contains the digest"},
    **problems(503),
}


def content(
    farm: Services, digest: str, size: int, *, what: str, if_none_match: str | None
) -> Response:
    """A blob's bytes, or 304 if the client has them.

    Raises:
        BlobDamaged: the store has lost them.
    """
    etag = f'"{digest}"'
    return not_modified(etag, if_none_match) or BlobResponse(
        whole(farm, digest, size, what), etag=etag
    )


def whole(farm: Services, digest: str, size: int, what: str) -> pathlib.Path:
    """The blob's file, checked for its length.

    Raises:
        BlobDamaged
    """
    with suppress(NotFound, FileNotFoundError):
        path = farm.store.path(digest)
        if path.stat().st_size == size:
            return path
        with farm.db.write() as session:
            scrub.check(session, farm.store, [digest])
    raise BlobDamaged(f"the store has lost the bytes of {what}")
