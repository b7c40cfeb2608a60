"""Builds: submitted, listed, followed, cancelled, retried."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field, StringConstraints
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm import logs as own_logs
from farm.api.documents import event_stream, json_body
from farm.api.extent import parsed
from farm.api.services import (
    Body,
    BuildId,
    By,
    Cursor,
    Farm,
    LabelFilters,
    Limit,
    Services,
    answer,
    problems,
)
from farm.builds import loaded, replan, views
from farm.builds.attach import Submitted
from farm.builds.cancel import cancel_build
from farm.builds.dry_run import dry_run as foretold
from farm.builds.expected import expect
from farm.builds.explain import explain
from farm.builds.logs import log as printed
from farm.builds.submit import Terms, submit_build
from farm.errors import Conflict
from farm.fleet.workers import Fleet
from farm.quotas.admission import Work, admit, foresee
from farm.quotas.use import Holder
from farm.schemas.builds import BuildPage, BuildView, Explanation
from farm.schemas.events import Event
from farm.schemas.forecast import DryRun
from farm.schemas.submission import BuildRequest
from farm.specs.queues import takes_gpu
from farm.specs.roles import Role
from farm.specs.states import BuildState, JobState, Reuse
from farm.trust import audit
from farm.trust.callers import Caller

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/builds", tags=["builds"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=200,
        description="a repeated request with the same key returns the first response",
    ),
]
ClientName = Annotated[
    str | None,
    Header(
        alias="Farm-Client",
        max_length=100,
        description="the client's name, for the audit. Scheduling is fair across keys; if none is "
        "required, across these names, or else addresses",
    ),
]
OnlyForetell = Annotated[
    bool,
    Query(
        description="only tell what would be done and how long it would take, as like jobs took: the "
        "blobs needn't be uploaded, and nothing is kept"
    ),
]
R = TypeVar("R")
_RACES = 10  #: how often a submission that raced another for the same work is retried


@router.post(
    "",
    status_code=202,
    summary="Submit a build",
    response_model=BuildView,
    responses=problems(404, 409, 413)
    | {200: {"model": DryRun, "description": "With `dry_run`: what would be done"}},
    openapi_extra=json_body(BuildRequest),
)
def submit(
    body: Body,
    farm: Farm,
    by: By,
    idempotency_key: IdempotencyKey = None,
    _client: ClientName = None,
    dry_run: OnlyForetell = False,
    source_bytes: Annotated[
        Annotated[int, Field(ge=1, le=2**53)] | None,
        Query(description="of a dry run: the size of a source that isn't uploaded"),
    ] = None,
) -> Response:
    """Plan a model version × precisions × targets. Finished and running jobs are reused.

    With `bench`, every runtime and precision of the targets that can be built.
    """
    request = parsed(BuildRequest, body)
    with farm.one_of(farm.planning, "other builds are being planned"):
        if dry_run:
            return answer(foreseen(farm, request, by, source_bytes))
        view = submitted(farm, request, by, idempotency_key)
    return answer(view, status=202, headers={"Location": f"/v1/builds/{view.id}"})


def submitted(
    farm: Services, request: BuildRequest, by: Caller, idempotency_key: str | None
) -> BuildView:
    """Submit a build, and announce its jobs."""
    look = farm.looks.at(request.source.digest, request.source.format)

    def work(session: Session) -> Submitted:
        made = submit_build(
            session,
            request,
            _terms(farm, session),
            look=look,
            client=by.client,
            idempotency_key=_of(by, idempotency_key),
        )
        if made.attached is not None:
            audit.record(session, by, "submit", made.build_id, model=made.attached.model)
        return _admitted(farm, session, Holder.of(by), made)

    return _unit(farm, work)


def _admitted(
    farm: Services, session: Session, holder: Holder | None, made: Submitted
) -> Submitted:
    """A build that its key's limits allow.

    Raises:
        QuotaExceeded
    """
    if holder is None or made.attached is None:
        return made
    work = Work(builds=int(made.is_live), queues=made.new_queues)
    return replace(made, warnings=admit(session, holder, work, farm.expected_s))


def _terms(farm: Services, session: Session) -> Terms:
    settings = farm.settings
    return Terms(
        fleet=farm.fleet(session),
        runtimes=settings.runtimes,
        plugin_keys=settings.plugin_keys,
        gates=settings.gates,
        most_jobs=settings.max_build_jobs,
    )


def foreseen(
    farm: Services, request: BuildRequest, by: Caller, source_bytes: int | None = None
) -> DryRun:
    """What a submission would do."""
    look = farm.looks.at(request.source.digest, request.source.format)

    def work(session: Session) -> DryRun:
        return foretold(
            session,
            request,
            _terms(farm, session),
            farm.history,
            look=look,
            client=by.client,
            source_bytes=source_bytes,
        )

    told = _raced(farm, work)
    holder = Holder.of(by)
    if holder is not None:
        with farm.db.read() as session:
            work_of = _work(told, source_bytes)
            told.refusal, told.warnings = foresee(session, holder, work_of, farm.expected_s)
    return told


def _work(told: DryRun, source_bytes: int | None) -> Work:
    """What a build would be to its key's limits."""
    is_absent = any(one.role == Role.SOURCE for one in told.absent)
    new = [job for job in told.jobs if job.reuse is Reuse.RAN]
    return Work(
        builds=int(any(job.state != JobState.SUCCEEDED for job in told.jobs)),
        queues={job.queue for job in new},
        bytes=(source_bytes or 0) if is_absent else 0,
        gpu_s=sum(
            job.forecast.took.expected for job in new if job.forecast and takes_gpu(job.queue)
        ),
    )


def _of(by: Caller, idempotency_key: str | None) -> str | None:
    """The caller's own idempotency key, so that nobody gets another caller's build."""
    if idempotency_key is None or by.key_id is None:
        return idempotency_key
    return f"{by.key_id}:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _unit(farm: Services, work: Callable[[Session], Submitted]) -> BuildView:
    """Run a unit of work, then announce its jobs."""

    def whole(session: Session) -> tuple[Submitted, Fleet, BuildView | None]:
        submitted = work(session)
        session.flush()
        fleet = farm.fleet(session)
        if submitted.attached is not None:
            return submitted, fleet, None
        return submitted, fleet, views.build(loaded.load(session, submitted.build_id), fleet)

    submitted, fleet, view = _raced(farm, whole)
    if view is not None:
        return view
    assert submitted.attached is not None
    own_logs.note(build=submitted.build_id)
    log.info("%d of %d jobs are ready", len(submitted.ready), len(submitted.attached.jobs))
    if submitted.ready:
        farm.sweeper.ring(submitted.ready)
    # A worker is notified in the meantime.
    view = views.build(submitted.attached, fleet)
    view.warnings = list(submitted.warnings)
    return view


def _raced(farm: Services, work: Callable[[Session], R]) -> R:
    """Run a unit of work that may race another for a unique row.

    Raises:
        Conflict: it lost again and again.
    """
    for _ in range(_RACES):
        try:
            with farm.db.write() as session:
                return work(session)
        except IntegrityError:
            continue
    raise Conflict("too many concurrent submissions of the same work", hint="submit it again")


@router.get("", summary="List builds", response_model=BuildPage, responses=problems(404, 409))
def list_builds(
    farm: Farm,
    model: Annotated[Annotated[str, StringConstraints(max_length=100)] | None, Query()] = None,
    state: BuildState | None = None,
    label: LabelFilters = (),
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Builds, newest first."""
    with farm.db.read() as session:
        items = views.builds(
            session, model=model, state=state, label=label, before=cursor, limit=limit + 1
        )
    more = len(items) > limit
    cursor = items[limit - 1].id if more else None
    return answer(BuildPage(items=items[:limit], cursor=cursor))


@router.get(
    "/{build_id}", summary="Show a build", response_model=BuildView, responses=problems(404)
)
def show(build_id: BuildId, farm: Farm) -> Response:
    """State, jobs, engines and errors of a build."""
    with farm.db.read() as session:
        rows, fleet = loaded.load(session, build_id), farm.fleet(session)
        view = views.build(rows, fleet)
        expect(session, view, rows, fleet, farm.history)
        return answer(view)


@router.get(
    "/{build_id}/events",
    summary="Follow a build",
    response_class=Response,
    responses=problems(404) | {200: event_stream(Event)},
)
async def follow(
    build_id: BuildId,
    farm: Farm,
    last_event_id: Annotated[
        Annotated[int, Field(ge=0, le=2**63 - 1)] | None,
        Header(description="resume after this event"),
    ] = None,
) -> Response:
    """Server-sent events: state changes, phases, progress, log. Ends when the build ends."""
    return await farm.streams.follow(build_id, last_event_id or 0)


@router.get(
    "/{build_id}/logs",
    summary="Read a build's log",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def logs(
    build_id: BuildId,
    farm: Farm,
    job: Annotated[
        Annotated[int, Field(ge=1, le=2**63 - 1)] | None, Query(description="a job's id")
    ] = None,
) -> str:
    """The output of the build's jobs, as text."""
    with farm.db.read() as session:
        return printed(session, build_id, job)


@router.get(
    "/{build_id}/explain",
    summary="Explain a build",
    response_model=Explanation,
    responses=problems(404),
)
def why(build_id: BuildId, farm: Farm) -> Response:
    """Why each job ran or was reused, compared with the closest earlier job."""
    with (
        farm.one_of(farm.planning, "other builds are being planned or explained"),
        farm.db.read() as session,
    ):
        return answer(explain(session, build_id))


@router.post(
    "/{build_id}/cancel",
    summary="Cancel a build",
    response_model=BuildView,
    responses=problems(404),
)
def cancel(build_id: BuildId, farm: Farm, by: By) -> Response:
    """Cancel the build and any of its jobs that no other build needs. Idempotent."""
    with farm.db.write() as session:
        if cancel_build(session, build_id):
            audit.record(session, by, "cancel", build_id)
        session.flush()
        view = views.build(loaded.load(session, build_id), farm.fleet(session))
    return answer(view)


@router.post(
    "/{build_id}/retry",
    summary="Retry a build",
    response_model=BuildView,
    responses=problems(404, 409),
)
def retry(
    build_id: BuildId,
    farm: Farm,
    by: By,
    force: Annotated[
        bool,
        Query(description="also if what failed would only fail again, which else is a conflict"),
    ] = False,
) -> Response:
    """Rerun failed and cancelled jobs; succeeded jobs are kept. Idempotent.

    A conflict if all that failed would fail again with the same request and tools.
    """

    def retried(session: Session) -> Submitted:
        found = replan.retry_build(session, build_id, fleet=farm.fleet(session), force=force)
        if found.attached is None:
            return found
        audit.record(session, by, "retry", build_id)
        # Whoever retries it: it is in flight for the key that submitted it.
        client = found.attached.build.client
        holder = Holder.of_client(session, client, farm.settings.limits)
        return _admitted(farm, session, holder, found)

    with farm.one_of(farm.planning, "other builds are being planned"):
        view = _unit(farm, retried)
    return answer(view)
