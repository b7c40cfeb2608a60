"""OCI's distribution-spec 1.1, pulling: models as repositories, versions and aliases as tags."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import JSONResponse

from farm.api import contents
from farm.api.files import OciBlobResponse, immutable, not_modified
from farm.api.services import Farm, Services
from farm.errors import Busy
from farm.registry.oci import derived, referrers, repositories
from farm.registry.oci.derived import Derived
from farm.registry.oci.manifests import Document
from farm.specs.repositories import check_digest, check_repository

router = APIRouter(prefix="/v2", include_in_schema=False)

Repository = Annotated[str, Path(description="`name` of the specification")]
Reference = Annotated[str, Path(max_length=200)]
Digest = Annotated[str, Path(max_length=200)]
IfNoneMatch = Annotated[str | None, Header()]
_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}
_PAGE = 1000
#: How often a request makes further manifests before it has the client ask again, and how many it keeps at
#: once: other writers wait meanwhile.
_PASSES, _KEPT_AT_ONCE = 10, 100


@router.get("/")
def ping() -> Response:
    """Whether this is a registry, and the key is right."""
    return JSONResponse({}, headers=_VERSION)


@router.get("/_catalog")
def list_repositories(
    farm: Farm, n: Annotated[int, Query(ge=0)] = _PAGE, last: str = ""
) -> Response:
    """Repositories, in the order of their bytes."""
    with farm.db.read() as session:
        names = repositories.catalog_of(session)
    page, headers = _page("/v2/_catalog", names, n, last)
    return JSONResponse({"repositories": page}, headers=headers)


@router.get("/{name:path}/tags/list")
def list_tags(
    name: Repository, farm: Farm, n: Annotated[int, Query(ge=0)] = _PAGE, last: str = ""
) -> Response:
    """A repository's tags, in the order of their bytes."""
    check_repository(name)
    with farm.db.read() as session:
        tags = repositories.tags(session, name)
    page, headers = _page(f"/v2/{name}/tags/list", tags, n, last)
    return JSONResponse({"name": name, "tags": page}, headers=headers)


def _page(
    path: str, items: Sequence[str], n: int, last: str
) -> tuple[Sequence[str], dict[str, str]]:
    start, n = bisect_right(items, last), min(n, _PAGE)
    page = items[start : start + n]
    if not page or start + n >= len(items):
        return page, {}
    following = urlencode({"n": n, "last": page[-1]})
    return page, {"Link": f'<{path}?{following}>; rel="next"'}


@router.head("/{name:path}/manifests/{reference}")
@router.get("/{name:path}/manifests/{reference}")
def get_manifest(
    name: Repository, reference: Reference, farm: Farm, if_none_match: IfNoneMatch = None
) -> Response:
    """A manifest, byte for byte as its digest has it."""
    check_repository(name)
    for _ in range(_PASSES):
        with farm.db.read() as session:
            found = repositories.manifest(session, name, reference)
        _keep(farm, name, found.new)
        if found.manifest is not None:
            return _served(found.manifest, if_none_match, is_fixed=":" in reference)
    raise Busy(f"the manifests of {name} are being made")


@router.get("/{name:path}/referrers/{digest}")
def list_referrers(
    name: Repository,
    digest: Digest,
    farm: Farm,
    artifact_type: Annotated[str | None, Query(alias="artifactType", max_length=255)] = None,
) -> Response:
    """What is known about a manifest: signature, reports, and what was pushed with it as subject."""
    check_repository(name)
    check_digest(digest)
    for _ in range(_PASSES):
        with farm.db.read() as session:
            index, new = referrers.listed(session, name, digest, artifact_type)
        _keep(farm, name, new)
        if not any(one.is_engines for one in new):
            break
    headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type else {}
    return Response(index.body, headers=headers, media_type=index.media_type)


@router.head("/{name:path}/blobs/{digest}")
@router.get("/{name:path}/blobs/{digest}")
def get_blob(
    name: Repository, digest: Digest, farm: Farm, if_none_match: IfNoneMatch = None
) -> Response:
    """A blob; `Range` resumes a download."""
    check_repository(name)
    with farm.db.read() as session:
        found = repositories.blob(session, name, digest)
    if isinstance(found, Document):
        return _served(found, if_none_match, is_fixed=True)
    etag = f'"{digest}"'
    headers = _VERSION | {"Docker-Content-Digest": digest}
    return not_modified(etag, if_none_match) or contents.sent(
        *(farm, found.digest, found.bytes),
        what=digest,
        etag=etag,
        headers=headers,
        kind=OciBlobResponse,
        may_redirect=True,
    )


def _keep(farm: Services, name: str, new: Sequence[Derived]) -> None:
    """Keep what is served for the first time: it is asked for by its digest next."""
    for start in range(0, len(new), _KEPT_AT_ONCE):
        with farm.db.write() as session:
            derived.keep(session, name, new[start : start + _KEPT_AT_ONCE])


def _served(document: Document, if_none_match: str | None, *, is_fixed: bool) -> Response:
    etag = f'"{document.digest}"'
    same = not_modified(etag, if_none_match)
    if same is not None:
        return same
    headers = _VERSION | {"Docker-Content-Digest": document.digest}
    headers |= immutable(etag) if is_fixed else {"ETag": etag, "Cache-Control": "no-cache"}
    return Response(document.body, headers=headers, media_type=document.media_type)
