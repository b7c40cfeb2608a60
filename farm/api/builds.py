"""Builds: submitted, listed, followed, cancelled, retried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm import builds, events, views
from farm.api.services import Cursor, Farm, Limit, Services, problems
from farm.builds import Submitted
from farm.errors import Conflict
from farm.explain import explain
from farm.schemas import BuildPage, BuildRequest, BuildView, Event, Explanation
from farm.states import BuildState

router = APIRouter(prefix="/v1/builds", tags=["builds"])

_POLL_S = 0.25
_RACES = 10  #: how often a submission that raced another of the same work is tried again


@router.post(
    "",
    status_code=202,
    summary="Submit a build",
    response_model=BuildView,
    responses=problems(404, 409, 422, 503),
)
async def submit(
    request: BuildRequest,
    farm: Farm,
    peer: Request,
    idempotency_key: Annotated[
        str | None,
        Header(max_length=200, description="makes a repeat return the first answer"),
    ] = None,
    farm_client: Annotated[
        str | None,
        Header(max_length=100, description="who asks; clients take turns. By default the address"),
    ] = None,
) -> Response:
    """Plan a model version × precisions × targets. Work that is there or on its way is reused."""
    # SQLite answers in less time than it takes to change threads (`make bench`: 0.67 of a bare
    # handler's rate against 0.5); Postgres is a network away, and must not hold up the others.
    client = farm_client or (peer.client.host if peer.client else "")
    if farm.db.is_sqlite:
        view = _submit(farm, request, client, idempotency_key)
    else:
        view = await run_in_threadpool(_submit, farm, request, client, idempotency_key)
    # Written here, since FastAPI would check our own answer field by field.
    return Response(
        view.model_dump_json(),
        status_code=202,
        headers={"Location": f"/v1/builds/{view.id}"},
        media_type="application/json",
    )


def _submit(
    farm: Services, request: BuildRequest, client: str, idempotency_key: str | None
) -> BuildView:
    look = farm.check_source(request.source.digest, request.source.format)
    return _unit(
        farm,
        lambda session: builds.submit(
            session,
            request,
            look=look,
            fleet=farm.fleet(session),
            runtimes=farm.settings.runtimes,
            plugin_keys=farm.settings.plugin_keys,
            gates=farm.settings.gates,
            client=client,
            idempotency_key=idempotency_key,
        ),
    )


def _unit(farm: Services, work: Callable[[Session], Submitted]) -> BuildView:
    """Run a unit of work that may race another over a unique row, then announce its jobs."""
    for _ in range(_RACES):
        try:
            with farm.db.write() as session:
                submitted = work(session)
                session.flush()
                fleet = farm.fleet(session)
                if submitted.attached is None:
                    return views.build(session, submitted.build_id, fleet)
            break
        except IntegrityError:
            continue
    else:
        raise Conflict("too many submissions of the same work at once", hint="submit it again")
    if submitted.ready:
        farm.sweeper.ring(submitted.ready)
    # A worker hears of it meanwhile.
    return views.attached(submitted.attached, fleet)


@router.get("", summary="List builds", responses=problems(404, 422))
def list_builds(
    farm: Farm,
    model: str | None = None,
    state: BuildState | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> BuildPage:
    """Builds, the newest first."""
    with farm.db.read() as session:
        items = views.builds(session, model=model, state=state, before=cursor, limit=limit + 1)
    more = len(items) > limit
    return BuildPage(items=items[:limit], cursor=items[limit - 1].id if more else None)


@router.get("/{build_id}", summary="Show a build", responses=problems(404))
def show(build_id: str, farm: Farm) -> BuildView:
    """State, jobs, engines and errors of a build."""
    with farm.db.read() as session:
        return views.build(session, build_id, farm.fleet(session))


def _existing(build_id: str, farm: Farm) -> str:
    with farm.db.read() as session:
        builds.state(session, build_id)
    return build_id


@router.get(
    "/{build_id}/events",
    summary="Follow a build",
    response_class=EventSourceResponse,
    responses=problems(404),
)
async def follow(
    build_id: Annotated[str, Depends(_existing)],
    farm: Farm,
    last_event_id: Annotated[
        Annotated[int, Field(ge=0, le=2**63 - 1)] | None,
        Header(description="resume after this event"),
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: changes of state, phases, progress, log. Ends when the build has ended."""
    last = last_event_id or 0
    while True:
        news, ended = await run_in_threadpool(_news, farm, build_id, last)
        for event in news:
            last = event.id
            yield ServerSentEvent(data=event, event=event.kind, id=str(event.id))
        if ended and not news:
            return
        if not news:
            await anyio.sleep(_POLL_S)


def _news(farm: Services, build_id: str, last: int) -> tuple[list[Event], bool]:
    with farm.db.read() as session:
        return events.since(session, build_id, last), events.has_ended(session, build_id, last)


@router.get(
    "/{build_id}/logs",
    summary="Read a build's log",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def logs(
    build_id: str, farm: Farm, job: Annotated[int | None, Query(description="a job's id")] = None
) -> str:
    """What the build's jobs printed, as text."""
    with farm.db.read() as session:
        return views.log(session, build_id, job)


@router.get("/{build_id}/explain", summary="Why did it run?", responses=problems(404))
def why(build_id: str, farm: Farm) -> Explanation:
    """Why each job ran or was reused, against the nearest earlier job."""
    with farm.db.read() as session:
        return explain(session, build_id)


@router.post("/{build_id}/cancel", summary="Cancel a build", responses=problems(404))
def cancel(build_id: str, farm: Farm) -> BuildView:
    """Cancel the build and those of its jobs that no other build wants. Idempotent."""
    with farm.db.write() as session:
        builds.cancel(session, build_id)
        session.flush()
        return views.build(session, build_id, farm.fleet(session))


@router.post("/{build_id}/retry", summary="Retry a build", responses=problems(404))
def retry(build_id: str, farm: Farm) -> BuildView:
    """Run what failed or was cancelled again; what has succeeded is kept. Idempotent."""
    return _unit(
        farm,
        lambda session: builds.retry(
            session, build_id, fleet=farm.fleet(session), runtimes=farm.settings.runtimes
        ),
    )
