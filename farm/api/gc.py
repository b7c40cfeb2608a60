"""Garbage collection, on demand."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, problems
from farm.daemon import gc, history
from farm.schemas.storage import GcReport, GcRequest

router = APIRouter(prefix="/v1/gc", tags=["fleet"])


@router.post(
    "", summary="Free disk space", responses=problems(507), openapi_extra=json_body(GcRequest)
)
def collect(body: Body, farm: Farm, by: By) -> GcReport:
    """Remove blobs that no version, build, succeeded job or engine refers to, and history that is older than
    the settings `FARM_KEEP_…` keep it.

    Safe while builds and uploads are running. Responds when finished.
    """
    request = parsed(GcRequest, body)
    with farm.one_of(farm.collecting, "another garbage collection is running"):
        if not request.dry_run:
            farm.sessions.expire()
        kept, dry_run = farm.settings.kept_history, request.dry_run
        forgotten = history.forget(farm.db, kept, dry_run=dry_run, by=by)
        report = gc.collect(
            farm.db, farm.store, older_than_s=request.older_than_s, dry_run=dry_run, by=by
        )
        return report.model_copy(update={"history": forgotten})
