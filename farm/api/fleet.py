"""Who is online, and what can be built."""

from __future__ import annotations

from fastapi import APIRouter

from farm import fleet
from farm.api.services import Farm
from farm.schemas import TargetView, WorkerView

router = APIRouter(prefix="/v1", tags=["fleet"])


@router.get("/workers", summary="List workers")
def workers(farm: Farm) -> list[WorkerView]:
    """Every worker that announced itself, with its GPU, and what it does now."""
    with farm.db.read() as session:
        return fleet.worker_views(session, farm.fleet(session))


@router.get("/targets", summary="List targets")
def targets(farm: Farm) -> list[TargetView]:
    """Every runtime × GPU tag: buildable now, when such a worker joins, or not at all, and why."""
    with farm.db.read() as session:
        return fleet.target_views(farm.fleet(session))
