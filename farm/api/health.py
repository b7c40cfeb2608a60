"""Health and metrics."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from farm.api import readiness
from farm.api.services import Farm, Services, problems
from farm.database.tables import Build, EngineRow, Job
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
    """Builds and jobs by state, queue lengths, workers and engines, read from the database."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FarmCollector(farm))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE)


class _FarmCollector(Collector):
    def __init__(self, farm: Services) -> None:
        self._farm = farm

    def collect(self) -> Iterator[Metric]:
        with self._farm.db.read() as session:
            builds = session.execute(select(Build.state, func.count()).group_by(Build.state)).all()
            jobs = session.execute(
                select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)
            ).all()
            queued = session.execute(
                select(Job.queue, func.count()).where(Job.state == "queued").group_by(Job.queue)
            ).all()
            engines = session.scalar(select(func.count()).select_from(EngineRow)) or 0
            online = sum(map(self._farm.fleet(session).online, self._farm.fleet(session).workers))
        yield _gauge("farm_builds", "Builds by state.", ["state"], builds)
        yield _gauge("farm_jobs", "Jobs by kind and state.", ["kind", "state"], jobs)
        yield _gauge("farm_queued_jobs", "Queued jobs by queue.", ["queue"], queued)
        yield GaugeMetricFamily("farm_engines", "Engines in the registry.", engines)
        yield GaugeMetricFamily("farm_workers_online", "Workers online.", online)


def _gauge(name: str, text: str, labels: list[str], rows: object) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for *values, count in rows:  # type: ignore[attr-defined]
        family.add_metric([str(value) for value in values], count)
    return family
