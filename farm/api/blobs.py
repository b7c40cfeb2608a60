"""Uploads: streamed to disk, never held in memory."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from farm.api import contents
from farm.api.services import By, Farm, Services, answer, problems
from farm.daemon import scrub
from farm.errors import InvalidRequest, NotFound
from farm.registry import uses
from farm.schemas.base import Digest
from farm.schemas.storage import Blob, BlobCheck
from farm.schemas.uses import BlobUses
from farm.store import artifacts
from farm.store.base import Stored
from farm.store.held import Hold
from farm.trust import audit
from farm.trust.callers import Caller

router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]+):")


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    responses=problems(507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def upload(
    request: Request,
    farm: Farm,
    by: By,
    repr_digest: Annotated[
        str | None,
        Header(
            description="RFC 9530; the upload is verified, and nothing is stored on a mismatch",
            examples=["sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"],
            json_schema_extra={"pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
        ),
    ] = None,
) -> Blob:
    """Store the raw request body under its sha256.

    What a key holds in uploads that no build has used is limited: 413 says what to do.
    """
    expected = _announced(repr_digest)
    hold = farm.hold(by, announced=request.headers.get("content-length"))
    async with hold.until_stored():
        stored = await farm.store.receive(
            hold.through(request.stream()),
            expected=expected,
            max_bytes=farm.settings.max_upload_bytes,
        )
        await run_in_threadpool(_remember, farm, hold, stored, by)
    return Blob(digest=stored.digest, bytes=stored.bytes)


def _announced(header: str | None) -> str | None:
    if header is None:
        return None
    found = _SHA256.search(header)
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InvalidRequest(
            "Repr-Digest has no sha-256", hint="send Repr-Digest: sha-256=:BASE64:, or omit it"
        )
    return f"sha256:{digest.hex()}"


def _remember(farm: Services, hold: Hold, stored: Stored, by: Caller) -> None:
    with farm.db.write() as session:
        hold.stored(session, stored)
        audit.record(session, by, "upload", stored.digest, bytes=stored.bytes)


@router.get(
    "/{digest}",
    summary="Download a file",
    response_class=Response,
    responses=contents.ANSWERS,
)
def download(
    digest: Annotated[Digest, Path()], farm: Farm, if_none_match: contents.IfNoneMatch = None
) -> Response:
    """Any file, by its digest, for workers. `Range` resumes a download."""
    with farm.db.read() as session:
        size = artifacts.size(session, digest)
    if size is None:
        raise _absent(digest)
    return contents.content(farm, digest, size, what=f"blob {digest}", if_none_match=if_none_match)


@router.post(
    "/{digest}/check",
    summary="Check a file",
    response_model=BlobCheck,
    responses=problems(404),
)
def check(digest: Annotated[Digest, Path()], farm: Farm, by: By) -> Response:
    """Hash a file, and quarantine it if it is damaged, for a worker that has got other bytes."""
    if not farm.store.has(digest):
        raise _absent(digest)
    right = scrub.is_right(farm.store, digest)
    if not right:
        with farm.db.write() as session:
            scrub.quarantine(session, farm.store, [digest], by)
    return answer(BlobCheck(digest=digest, right=right))


@router.get(
    "/{digest}/uses",
    summary="Show what refers to a blob",
    response_model=BlobUses,
    responses=problems(404),
)
def show_uses(digest: Annotated[Digest, Path()], farm: Farm) -> Response:
    """Which engine a file is, of which version it is the source, or which builds it was given as data."""
    with farm.db.read() as session:
        return answer(uses.uses(session, digest))


@router.head(
    "/{digest}",
    summary="Check whether a blob exists",
    response_class=Response,
    responses=problems(404),
)
def head(digest: Annotated[Digest, Path()], farm: Farm) -> Response:
    """200 with its size as Content-Length, or 404. Lets a client skip an upload."""
    # The caller relies on it from now on, so renew it as an upload would.
    with farm.db.write() as session:
        size = artifacts.renew(session, digest)
    if size is None or not farm.store.has(digest):
        raise _absent(digest)
    return Response(headers={"Content-Length": str(size), "ETag": f'"{digest}"'})


def _absent(digest: str) -> NotFound:
    return NotFound(f"there is no blob {digest}", hint="upload it: POST /v1/blobs")
