"""Garbage collection, on demand."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, problems
from farm.daemon import gc
from farm.schemas.storage import GcReport, GcRequest

router = APIRouter(prefix="/v1/gc", tags=["fleet"])


@router.post(
    "", summary="Free disk space", responses=problems(507), openapi_extra=json_body(GcRequest)
)
def collect(body: Body, farm: Farm, by: By) -> GcReport:
    """Remove blobs that no version, build, succeeded job or engine refers to.

    Safe while builds and uploads are running. Responds when finished.
    """
    request = parsed(GcRequest, body)
    with farm.one_of(farm.collecting, "another garbage collection is running"):
        if not request.dry_run:
            farm.sessions.expire()
        return gc.collect(
            farm.db,
            farm.store,
            older_than_s=request.older_than_s,
            dry_run=request.dry_run,
            by=by,
        )
