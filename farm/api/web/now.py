"""What the farm does now, and its builds."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from farm.api.services import By, Cursor, Farm, answer
from farm.api.web.paging import LOOKED_FOR, cut
from farm.api.web.render import page
from farm.builds import views
from farm.builds.overview import overview
from farm.schemas.links import Links
from farm.specs.states import BuildState

router = APIRouter(include_in_schema=False)

_LIVE, _QUEUED, _ENDED = 50, 10, 5


@router.get("/")
def now(request: Request, farm: Farm, by: By) -> Response:
    """The page; links for clients that ask for JSON."""
    if request.headers.get("accept", "").startswith("application/json"):
        return answer(Links())
    with farm.db.read() as session:
        fleet = farm.fleet(session)
        seen = overview(session, fleet, most_live=_LIVE, most_ended=_ENDED)
    return page(
        request,
        by,
        "now.html",
        seen=seen,
        most_queued=_QUEUED,
        workers=len(fleet.workers),
        online=sum(map(fleet.online, fleet.workers)),
        base=str(request.base_url).rstrip("/"),
    )


@router.get("/builds")
def builds(
    request: Request,
    farm: Farm,
    by: By,
    state: BuildState | None = None,
    model: Annotated[str | None, Query(max_length=100)] = None,
    cursor: Cursor = None,
) -> Response:
    with farm.db.read() as session:
        found = views.builds(
            session, model=model or None, state=state, before=cursor, limit=LOOKED_FOR
        )
    shown, older = cut(found, lambda one: one.id)
    return page(
        request,
        by,
        "builds.html",
        builds=shown,
        older=older,
        state=state,
        model=model or "",
        states=list(BuildState),
    )
