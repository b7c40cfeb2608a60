"""Workers, targets and timing caches."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.services import Farm
from farm.fleet import timing_caches
from farm.fleet.targets import target_views
from farm.fleet.workers import worker_views
from farm.schemas.fleet import TargetView, TimingCacheView, WorkerView

router = APIRouter(prefix="/v1", tags=["fleet"])


@router.get("/workers", summary="List workers")
def workers(farm: Farm) -> list[WorkerView]:
    """Every known worker, with its GPU and current job."""
    with farm.db.read() as session:
        return worker_views(session, farm.fleet(session))


@router.get("/targets", summary="List targets")
def targets(farm: Farm) -> list[TargetView]:
    """Every runtime × GPU tag: buildable now, once a matching worker joins, or unsupported, and why."""
    with farm.db.read() as session:
        return target_views(farm.fleet(session))


@router.get("/timing-caches", summary="List timing caches")
def list_timing_caches(farm: Farm) -> list[TimingCacheView]:
    """TensorRT's timing caches, one per GPU and toolchain, which the next build starts from."""
    with farm.db.read() as session:
        return timing_caches.views(session)
