"""Workers, targets and timing caches."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.services import Farm
from farm.builds.overview import running
from farm.fleet import timing_caches
from farm.fleet.queues import queue_views
from farm.fleet.targets import target_views
from farm.fleet.workers import worker_views
from farm.schemas.fleet import NowView, QueueView, TargetView, TimingCacheView, WorkerView

router = APIRouter(prefix="/v1", tags=["fleet"])

_RUNNING = 200


@router.get("/workers", summary="List workers")
def workers(farm: Farm) -> list[WorkerView]:
    """Every known worker, with its GPU and current job."""
    with farm.db.read() as session:
        return worker_views(session, farm.fleet(session))


@router.get("/queues", summary="List queues")
def queues(farm: Farm) -> list[QueueView]:
    """Every queue with jobs in it, or that a known worker reads, the longest wait first."""
    with farm.db.read() as session:
        return queue_views(session, farm.fleet(session))


@router.get("/now", summary="Show what the farm does now")
def now(farm: Farm) -> NowView:
    """Workers, queues and running jobs."""
    with farm.db.read() as session:
        fleet = farm.fleet(session)
        return NowView(
            workers=worker_views(session, fleet),
            queues=queue_views(session, fleet),
            running=running(session, limit=_RUNNING),
        )


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
