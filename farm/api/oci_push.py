"""OCI's distribution-spec 1.1, pushing: blobs in one request or several, manifests, and their deletion."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from farm.api import chunks
from farm.api.chunks import ContentRange
from farm.api.oci import Digest, Reference, Repository
from farm.api.services import Body, By, Farm, Services
from farm.errors import BlobUnknown, DigestMismatch, RepositoryUnknown
from farm.registry.oci import pushed
from farm.specs.repositories import check_digest, check_repository
from farm.specs.scopes import Scope
from farm.store import held
from farm.store.base import Stored
from farm.store.held import Hold
from farm.trust import audit
from farm.trust.callers import Caller, allows

router = APIRouter(prefix="/v2", include_in_schema=False)


@router.post("/{name:path}/blobs/uploads/")
async def begin_upload(
    request: Request,
    name: Repository,
    farm: Farm,
    by: By,
    digest: str | None = None,
    mount: str | None = None,
    origin: Annotated[str | None, Query(alias="from")] = None,
) -> Response:
    """Begin an upload; or end it at once, with `digest` and the bytes, or with `mount`, from a repository."""
    check_repository(name)
    if mount is not None:
        check_digest(mount)
        if await run_in_threadpool(_mount, farm, by, name, mount, origin):
            return _created(name, mount)
    expected = None if digest is None else check_digest(digest)
    upload = await run_in_threadpool(farm.sessions.begin, name, by.key_id or by.address)
    if expected is None:
        return _accepted(name, upload, 0)
    hold = _hold(farm, by, upload, request)
    try:
        await farm.sessions.append(name, upload, request.stream(), start=None, hold=hold)
    except BaseException:
        farm.sessions.end(name, upload)  # nobody knows its address
        await hold.rest(0)
        raise
    return await run_in_threadpool(_finish, farm, by, name, upload, expected, hold)


def _hold(farm: Services, by: Caller, upload: str, request: Request) -> Hold:
    return farm.hold(by, upload=upload, announced=request.headers.get("content-length"))


def _mount(farm: Services, by: Caller, name: str, digest: str, origin: str | None) -> bool:
    if origin is not None:
        check_repository(origin)
    with farm.db.write() as session:
        try:
            mounted = pushed.mount(session, name, digest, origin)
        except (BlobUnknown, RepositoryUnknown):
            return False  # the client uploads it instead
        if mounted:
            audit.record(session, by, "mount", f"{name}@{digest}", origin=origin)
        return mounted


@router.get("/{name:path}/blobs/uploads/{upload}")
def show_upload(name: Repository, upload: str, farm: Farm) -> Response:
    """How far an upload came."""
    check_repository(name)
    return _accepted(name, upload, farm.sessions.bytes_of(name, upload), status=204)


@router.patch("/{name:path}/blobs/uploads/{upload}")
async def add_to_upload(
    request: Request,
    name: Repository,
    upload: str,
    farm: Farm,
    by: By,
    content_range: ContentRange = None,
) -> Response:
    """Add bytes to an upload, where it ends."""
    check_repository(name)
    start = chunks.start_of(request, content_range)
    hold = _hold(farm, by, upload, request)
    size = await farm.sessions.append(name, upload, request.stream(), start=start, hold=hold)
    return _accepted(name, upload, size)


@router.put("/{name:path}/blobs/uploads/{upload}")
async def finish_upload(
    request: Request,
    name: Repository,
    upload: str,
    farm: Farm,
    by: By,
    digest: str = "",
    content_range: ContentRange = None,
) -> Response:
    """Add the last bytes, if there are any, and store the blob if it has this digest."""
    check_repository(name)
    check_digest(digest)
    start = chunks.start_of(request, content_range)
    hold = _hold(farm, by, upload, request)
    await farm.sessions.append(name, upload, request.stream(), start=start, hold=hold)
    return await run_in_threadpool(_finish, farm, by, name, upload, digest, hold)


@router.delete("/{name:path}/blobs/uploads/{upload}")
def drop_upload(name: Repository, upload: str, farm: Farm, by: By) -> Response:
    """End an upload without a blob."""
    check_repository(name)
    farm.sessions.end(name, upload)
    with farm.db.write() as session:
        held.drop(session, upload)
        audit.record(session, by, "upload.drop", f"{name}/{upload}")
    return Response(status_code=204)


@router.put("/{name:path}/manifests/{reference}")
def put_manifest(
    name: Repository,
    reference: Reference,
    body: Body,
    farm: Farm,
    by: By,
    content_type: Annotated[str | None, Header()] = None,
    tag: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """Store a manifest, and have the tags name it. The farm's versions and aliases aren't moved so."""
    with farm.db.write() as session:
        put = pushed.put(
            session,
            name,
            reference,
            body,
            tags=tag or (),
            media_type=content_type,
            protected=farm.settings.protected_aliases,
            is_admins=allows(by.scopes, Scope.ADMIN),
        )
        told = {"digest": put.digest} | ({"tags": put.tags} if tag else {})
        audit.record(session, by, "push", f"{name}:{reference}", **told)
    headers = {
        "Location": f"/v2/{name}/manifests/{put.digest}",
        "Docker-Content-Digest": put.digest,
    }
    if put.subject is not None:
        headers["OCI-Subject"] = put.subject
    answer = Response(status_code=201, headers=headers)
    for one in put.tags if tag else ():
        answer.headers.append("OCI-Tag", one)
    return answer


@router.delete("/{name:path}/manifests/{reference}")
def delete_manifest(name: Repository, reference: Reference, farm: Farm, by: By) -> Response:
    """Delete a pushed tag; or a pushed manifest by its digest, with its tags."""
    check_repository(name)
    with farm.db.write() as session:
        pushed.remove(session, name, reference, farm.settings.protected_aliases)
        audit.record(session, by, "push.delete", f"{name}:{reference}")
    return Response(status_code=202)


@router.delete("/{name:path}/blobs/{digest}")
def delete_blob(name: Repository, digest: Digest, farm: Farm, by: By) -> Response:
    """Have a repository no longer have a pushed blob. Its bytes go with the next garbage collection."""
    check_repository(name)
    with farm.db.write() as session:
        pushed.unlink(session, name, digest)
        audit.record(session, by, "push.delete", f"{name}@{digest}")
    return Response(status_code=202)


def _finish(
    farm: Services, by: Caller, name: str, upload: str, digest: str, hold: Hold
) -> Response:
    try:
        stored: Stored = farm.sessions.finish(name, upload, digest)
    except DigestMismatch:
        with farm.db.write() as session:
            held.drop(session, upload)
        raise
    with farm.db.write() as session:
        hold.stored(session, stored)
        pushed.link(session, name, stored.digest, named=digest)
        audit.record(session, by, "upload", stored.digest, bytes=stored.bytes, repository=name)
    return _created(name, digest)


def _accepted(name: str, upload: str, size: int, *, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{upload}",
        "Range": f"0-{max(size - 1, 0)}",
        "Docker-Upload-UUID": upload,
    }
    return Response(status_code=status, headers=headers)


def _created(name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(status_code=201, headers=headers)
