"""A build: its jobs as a graph, its engines, what failed, why each job ran."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from farm.api.services import BuildId, By, Farm, Services
from farm.api.web import graph
from farm.api.web.render import page
from farm.builds import loaded, views
from farm.builds.edges import edges
from farm.builds.explain import explain as explained
from farm.client.failures import failures
from farm.errors import Busy
from farm.fleet.workers import Fleet
from farm.schemas.builds import BuildView, Explanation, JobView, WantedEngine
from farm.specs.states import BUILD_ENDED, EngineState, JobState
from farm.trust import keys

router = APIRouter(include_in_schema=False)

_MOST_PULLS = 12


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An engine that a build wants, and what became of it: a job's state, or the engine's."""

    want: WantedEngine
    state: str
    job: JobView | None = None  #: the job on which it depends


@router.get("/builds/{build_id}")
def build(
    request: Request, build_id: BuildId, farm: Farm, by: By, explain: bool = False
) -> Response:
    with farm.db.read() as session:
        rows = loaded.load(session, build_id)
        fleet = farm.fleet(session)
        pairs = edges(session, build_id)
        who = keys.client_name(session, rows.build.client)
    view = views.build(rows, fleet)
    return page(
        request,
        by,
        "build.html",
        build=view,
        who=who,
        is_live=view.state not in BUILD_ENDED,
        failures=list(_failures(view, fleet)),
        outcomes=[_outcome(view, want, pairs) for want in view.engines],
        drawing=graph.draw(view.jobs, pairs),
        waits_for=list(dict.fromkeys(job.waits_for for job in view.jobs if job.waits_for)),
        pulls=_pulls(view),
        base=str(request.base_url).rstrip("/"),
        asked=explain,
        why=_why(farm, build_id) if explain else None,
    )


def _failures(view: BuildView, fleet: Fleet) -> Iterator[tuple[JobView, str, object, str | None]]:
    """Each failed job with its name, its error and the GPU of its worker."""
    gpus = {worker.name: worker.gpu for worker in fleet.workers}
    for job, error in failures(view):
        yield job, view.name_of(job), error, gpus.get(job.worker or "") or job.target


def _outcome(view: BuildView, want: WantedEngine, pairs: Collection[tuple[int, int]]) -> Outcome:
    if want.engine is not None:
        return Outcome(want=want, state=EngineState.DOUBTFUL if want.doubts else EngineState.READY)
    jobs = {job.id: job for job in view.jobs}
    made, measured = jobs[want.build_job], jobs[want.measure_job]
    for state in (JobState.FAILED, JobState.CANCELLED, JobState.RUNNING, JobState.QUEUED):
        for job in (made, measured):
            if job.state == state:
                return Outcome(want=want, state=state, job=_cause(job, jobs, pairs))
    return Outcome(want=want, state=JobState.WAITING, job=made)


def _cause(
    job: JobView, jobs: Mapping[int, JobView], pairs: Collection[tuple[int, int]]
) -> JobView:
    """The job because of which this one never ran, or itself."""
    new, seen = [job], {job.id}
    while new:
        one = new.pop()
        if not one.never_ran:
            return one
        before = [jobs[made] for made, taker in pairs if taker == one.id and made in jobs]
        failed = [made for made in before if made.error and made.id not in seen]
        seen.update(made.id for made in failed)
        new += failed
    return job


def _pulls(view: BuildView) -> Sequence[str]:
    """Commands that pull what is done."""
    done = [want for want in view.engines if want.engine is not None and not want.doubts]
    name = shlex.quote(view.model)
    gpus = dict.fromkeys(want.target.rpartition(":")[2] for want in done)
    lines = [f"farm pull {name} --gpu {shlex.quote(gpu)} --version {view.version}" for gpu in gpus][
        :_MOST_PULLS
    ]
    return [*lines, f"farm pull --build {view.id}"] if len(done) > 1 else lines


def _why(farm: Services, build_id: str) -> Explanation | None:
    """Why each job ran; None while others are planned or explained."""
    try:
        with (
            farm.one_of(farm.planning, "other builds are being planned or explained"),
            farm.db.read() as session,
        ):
            return explained(session, build_id)
    except Busy:
        return None
