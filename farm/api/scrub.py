"""Scrubbing, on demand."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.services import By, Farm, problems
from farm.daemon import scrub
from farm.schemas.storage import ScrubReport

router = APIRouter(prefix="/v1/scrub", tags=["fleet"])


@router.post("", summary="Verify stored bytes", responses=problems(503))
def check(farm: Farm, by: By) -> ScrubReport:
    """Hash every blob. Damaged ones are quarantined; retries and uploads restore them.

    Responds when finished, after a second or two per gigabyte.
    """
    return scrub.scrub(farm.db, farm.store, by)
