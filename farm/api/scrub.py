"""Scrubbing, on demand."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.services import By, Farm, problems
from farm.daemon import scrub
from farm.schemas.storage import ScrubReport

router = APIRouter(prefix="/v1/scrub", tags=["fleet"])


@router.post("", summary="Check the store's bytes", responses=problems(503))
def check(farm: Farm, by: By) -> ScrubReport:
    """Hash every blob. Damaged ones are set aside, and retries and uploads make them again.

    It answers when it is done: a second or two for each gigabyte.
    """
    return scrub.scrub(farm.db, farm.store, by)
