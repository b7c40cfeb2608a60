"""Health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import generate_latest

from farm.api import readiness
from farm.api.services import Farm, problems
from farm.errors import NotReady
from farm.schemas.health import Readiness

router = APIRouter(tags=["health"])

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz", summary="Liveness")
async def healthz() -> dict[str, str]:
    # No thread: it answers even while all threads are busy.
    return {"status": "ok"}


@router.get("/readyz", summary="Readiness", responses=problems())
def readyz(farm: Farm) -> Readiness:
    """Whether the database, schema, store and disk are usable; 503 says which isn't, and what to do.

    An unreachable broker, or a worker that doesn't read its queues, doesn't count: submissions are still
    accepted, and wait.
    """
    found = readiness.checks(farm.settings, farm.db, farm.store)
    wrong = [f"{part}: {said}" for part, said in found.items() if said != readiness.OK]
    if any(found[part] != readiness.OK for part in found.keys() - readiness.WAITED_FOR):
        raise NotReady("; ".join(wrong))
    return Readiness(status="degraded" if wrong else "ready", checks=found)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(farm: Farm) -> Response:
    """Queues, builds, jobs, workers and the store, read from the database, and this process's requests.

    What each metric means: docs/reference/metrics.md.
    """
    return Response(generate_latest(farm.registry), media_type=CONTENT_TYPE)
