"""Answers with a blob's bytes: by ETag and Range, and never with a damaged file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Header, Response

from farm.api.files import OCTETS, BlobResponse, StreamedResponse, not_modified
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
    return not_modified(etag, if_none_match) or sent(farm, digest, size, what=what, etag=etag)


def sent(
    farm: Services,
    digest: str,
    size: int,
    *,
    what: str,
    etag: str,
    headers: Mapping[str, str] = MappingProxyType({}),
    media_type: str = OCTETS,
    kind: type[BlobResponse] = BlobResponse,
) -> Response:
    """A blob's bytes, from wherever the store has them.

    Parameters:
        what: the name of it for people.

    Raises:
        BlobDamaged: the store has lost them.
    """
    require_whole(farm, digest, size, what)
    try:
        path = farm.store.place(digest)
        if path is not None:
            return kind(path, etag=etag, headers=headers, media_type=media_type)
    except (NotFound, FileNotFoundError):
        raise _lost(what) from None
    read = partial(farm.store.read, digest)
    return StreamedResponse(
        read, size, etag=etag, headers=headers, media_type=media_type, kind=kind
    )


def require_whole(farm: Services, digest: str, size: int, what: str) -> None:
    """Return if the store has the blob, as long as it must be.

    Raises:
        BlobDamaged
    """
    found = farm.store.find(digest)
    if found is None:
        raise _lost(what)
    if found.bytes != size:
        with farm.db.write() as session:
            scrub.check(session, farm.store, [digest])
        raise _lost(what)


def _lost(what: str) -> BlobDamaged:
    return BlobDamaged(f"the store has lost the bytes of {what}")
