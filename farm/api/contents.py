"""Answers with a blob's bytes: by ETag and Range, and never with a damaged file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Header, Response

from farm.api.files import (
    OCTETS,
    BlobResponse,
    StreamedResponse,
    immutable,
    not_modified,
)
from farm.api.services import Services, problems
from farm.daemon import scrub
from farm.errors import BlobDamaged, NotFound

_LINK_S = 15 * 60.0
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
    307: {
        "description": "the file is in a bucket, at `Location`, which needs no key for 15 minutes"
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
    return not_modified(etag, if_none_match) or sent(
        farm, digest, size, what=what, etag=etag, may_redirect=True
    )


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
    may_redirect: bool = False,
) -> Response:
    """A blob's bytes, from wherever the store has them.

    Parameters:
        what: the name of it for people.
        may_redirect: whether clients of this call go to where the store keeps the bytes.

    Raises:
        BlobDamaged: the store has lost them.
    """
    require_whole(farm, digest, size, what)
    try:
        path = farm.store.place(digest)
        if path is not None and farm.settings.accel_redirect:
            return _by_nginx(farm, path, {**immutable(etag), **headers}, media_type)
        if path is not None:
            return kind(path, etag=etag, headers=headers, media_type=media_type)
    except (NotFound, FileNotFoundError):
        raise _lost(what) from None
    is_linked = may_redirect and farm.settings.redirect_pulls
    return StreamedResponse(
        partial(farm.store.read, digest),
        size,
        etag=etag,
        headers=headers,
        media_type=media_type,
        kind=kind,
        link=farm.store.link(digest, lasts_s=_LINK_S) if is_linked else None,
    )


def _by_nginx(
    farm: Services, path: pathlib.Path, headers: Mapping[str, str], media_type: str
) -> Response:
    """Have nginx, through which the request came, send a file of the store's folder."""
    inside = path.relative_to(farm.settings.store_dir)
    accel = {"X-Accel-Redirect": f"{farm.settings.accel_redirect}{inside}"}
    return Response(headers={**headers, **accel}, media_type=media_type)


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
