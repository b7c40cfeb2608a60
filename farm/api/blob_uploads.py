"""Uploads in several requests: one that breaks off goes on where it ended."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from farm.api.chunks import ContentRange, start_of
from farm.api.services import By, Farm, Services, answer, problems
from farm.errors import DigestMismatch, EmptyBlob
from farm.schemas.base import Digest
from farm.schemas.storage import Blob, BlobUpload
from farm.store import held
from farm.store.base import Stored
from farm.store.held import Hold
from farm.trust import audit
from farm.trust.callers import Caller

router = APIRouter(prefix="/v1/uploads", tags=["blobs"])

#: The name of no repository: uploads of OCI's clients are others.
_OURS = "/v1/blobs"
UploadId = Annotated[str, Path(max_length=100, description="as the upload's beginning told it")]
_BYTES = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}


@router.post("", status_code=201, summary="Begin an upload", responses=problems(507))
def begin(farm: Farm, by: By, response: Response) -> BlobUpload:
    """Begin an upload in several requests; it may rest for a day.

    Send its bytes with `PATCH`, and end it with `PUT`. After a lost connection `GET` tells how many came.
    """
    upload = farm.sessions.begin(_OURS, by.key_id or by.address)
    response.headers["Location"] = f"{router.prefix}/{upload}"
    return BlobUpload(id=upload, bytes=0)


@router.get(
    "/{upload}", summary="Show an upload", response_model=BlobUpload, responses=problems(404)
)
def show(upload: UploadId, farm: Farm) -> Response:
    """How many bytes of it there are."""
    return answer(BlobUpload(id=upload, bytes=farm.sessions.bytes_of(_OURS, upload)))


@router.patch(
    "/{upload}",
    summary="Add to an upload",
    response_model=BlobUpload,
    responses=problems(404, 416, 507),
    openapi_extra=_BYTES,
)
async def add(
    request: Request, upload: UploadId, farm: Farm, by: By, content_range: ContentRange = None
) -> Response:
    """Add the request's body to it. What came of a body that broke off stays.

    With `Content-Range: bytes FIRST-LAST/*` it is refused unless the upload has FIRST bytes.
    """
    start = start_of(request, content_range)
    hold = farm.hold(by, upload=upload, announced=request.headers.get("content-length"))
    size = await farm.sessions.append(_OURS, upload, request.stream(), start=start, hold=hold)
    return answer(BlobUpload(id=upload, bytes=size))


@router.put(
    "/{upload}",
    status_code=201,
    summary="End an upload",
    responses=problems(404, 416, 507),
    openapi_extra=_BYTES,
)
async def finish(
    request: Request,
    upload: UploadId,
    farm: Farm,
    by: By,
    digest: Annotated[Digest, Query(description="of all its bytes")],
    content_range: ContentRange = None,
) -> Blob:
    """Add the request's body, if it has one, and store all of it; nothing if it has another digest."""
    start = start_of(request, content_range)
    hold = farm.hold(by, upload=upload, announced=request.headers.get("content-length"))
    if not await farm.sessions.append(_OURS, upload, request.stream(), start=start, hold=hold):
        raise EmptyBlob()
    try:
        stored = await run_in_threadpool(farm.sessions.finish, _OURS, upload, digest)
    except DigestMismatch:
        await hold.rest(0)
        raise
    await run_in_threadpool(_remember, farm, hold, stored, by)
    return Blob(digest=stored.digest, bytes=stored.bytes)


def _remember(farm: Services, hold: Hold, stored: Stored, by: Caller) -> None:
    with farm.db.write() as session:
        hold.stored(session, stored)
        audit.record(session, by, "upload", stored.digest, bytes=stored.bytes)


@router.delete("/{upload}", status_code=204, summary="Drop an upload", responses=problems(404))
def drop(upload: UploadId, farm: Farm, by: By) -> Response:
    """End it without storing it."""
    farm.sessions.end(_OURS, upload)
    with farm.db.write() as session:
        held.drop(session, upload)
        audit.record(session, by, "upload.drop", upload)
    return Response(status_code=204)
