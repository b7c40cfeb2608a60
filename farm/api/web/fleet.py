"""The fleet: workers and what they do, queues, whether all is right, and what takes the disk."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from farm.api import readiness
from farm.api.services import By, Farm
from farm.api.usage import measured
from farm.api.web.render import page
from farm.fleet.queues import queue_views
from farm.fleet.workers import worker_views

router = APIRouter(include_in_schema=False)


@router.get("/fleet")
def fleet(request: Request, farm: Farm, by: By, part: str = "") -> Response:
    """The page; ``part`` is one that takes longer, which the page asks for by itself."""
    if part == "disk":
        return page(request, by, "disk.html", usage=measured(farm))
    if part == "health":
        found = readiness.checks(farm.settings, farm.db, farm.store)
        return page(request, by, "health.html", checks=found, ok=readiness.OK)
    with farm.db.read() as session:
        seen = farm.fleet(session)
        workers, queues = worker_views(session, seen), queue_views(session, seen)
    workers.sort(key=lambda one: (not one.online, one.name))
    return page(request, by, "fleet.html", workers=workers, queues=queues)
