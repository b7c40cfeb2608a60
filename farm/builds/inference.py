"""Inferences: jobs that belong to no build. Equal ones are one job, and its result is kept like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import IS_IN_LINE, IS_USABLE, Job
from farm.errors import Conflict, DataRefused, NotFound, TooMany
from farm.fleet.workers import Fleet
from farm.formats import array_files
from farm.formats.archives import Malformed
from farm.planning import keys, policy
from farm.planning.recipe import Given, Recipe
from farm.queue import counted, jobs, transitions, turns
from farm.queue.turns import Bell
from farm.registry import catalog, ids
from farm.registry.match import best_match
from farm.schemas.engines import EngineView, Match
from farm.schemas.inference import InferenceView, InferRequest
from farm.specs import gpus
from farm.specs.inference import MAX_BYTES
from farm.specs.options import BuilderOptions
from farm.specs.queues import Queue
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.samples import Head, check_names, check_sizes, check_type, named
from farm.specs.states import JobState, Reuse
from farm.stages import STAGES, InferParams, JobKind
from farm.store import held
from farm.tracing import spans

#: Priority and place of a client's one inference in a queue: ahead of all builds, as somebody waits for it.
_FIRST = (9, 0)
#: Priority of its others, which take turns with builds: else one client could hold a worker for good.
_OTHERS = 5
#: Of one client in one queue, so that builds have their turns, too.
_MOST_WAITING = 16
_ROLES = (Role.ENGINE, Role.INPUTS)


def found(session: Session, request: InferRequest, fleet: Fleet) -> Match:
    """The engine to run: the one named, or the best for the GPU, or for any GPU that is online.

    Raises:
        NotFound, NameAmbiguous, UnknownGpu
    """
    if request.engine is not None:
        engine = catalog.engine(session, ids.engine_id(session, request.engine))
        return Match(engine=engine, why="requested by its id")
    assert request.model is not None
    tags = [request.gpu] if request.gpu else _online(fleet)
    first: NotFound | None = None
    for tag in tags:
        try:
            return best_match(
                session,
                request.model,
                tag,
                precision=request.precision,
                runtime=request.runtime,
                version=request.version,
                alias=request.alias,
            )
        except NotFound as err:
            first = first or err
    assert first is not None
    raise first


def _online(fleet: Fleet) -> list[str]:
    """The tags of the GPUs that are online, and then the CPU."""
    there = [tag for one in fleet.workers if fleet.online(one) for tag in one.tags]
    return [*(tag for tag in dict.fromkeys(there) if tag != gpus.CPU), gpus.CPU]


def check(path: Path, engine: EngineView) -> None:
    """Refuse inputs that the engine doesn't take. Only their headers are read.

    Raises:
        DataRefused
    """
    try:
        heads = named(array_files.heads(path), engine.inputs)
    except Malformed as err:
        raise DataRefused(
            f"the inputs can't be read: {err}",
            hint="save plain arrays with numpy.savez(path, input_name=array)",
        ) from err
    size = sum(map(array_files.bytes_of, heads.values()))
    if size > MAX_BYTES:
        raise DataRefused(
            f"the inputs take {size} bytes in memory, and at most {MAX_BYTES} are run",
            hint="send a smaller batch; to serve the engine, pull it",
        )
    check_names(heads, engine.inputs, DataRefused)
    for spec in engine.inputs:
        head = heads[spec.name]
        check_type(head, spec, 0, DataRefused)
        ranges = engine.profiles[0].get(spec.name) if engine.profiles else None
        if ranges is not None and len(ranges.max) == len(head.shape):
            check_sizes(head, spec.name, ranges, range(len(head.shape)), DataRefused)
    _check_shared_axes(heads, engine)


def _check_shared_axes(heads: Mapping[str, Head], engine: EngineView) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in engine.inputs:
        for axis, size in zip(spec.shape, heads[spec.name].shape, strict=True):
            if isinstance(axis, int):
                continue
            before, name = sizes.setdefault(axis, (size, spec.name))
            if before != size and axis != "?":
                raise DataRefused(
                    f"the axis {axis!r} is {before} in {name!r} and {size} in {spec.name!r}",
                    hint="send all inputs of one batch, at the same sizes",
                )


def start(
    session: Session, engine: EngineView, inputs: str, fleet: Fleet, *, client: str
) -> tuple[int, Bell | None]:
    """The job that runs an engine on these inputs, and the bell to ring for a new one after the commit.

    Raises:
        Conflict: no online worker can run it.
        TooMany: the client has many waiting.
    """
    target = Target(runtime=engine.runtime, gpu=engine.gpu)
    queue = _queue(target, fleet)
    recipe = _recipe(engine, target, inputs, fleet.toolchain(queue))
    held.settle(session, [inputs])
    before = session.scalar(select(Job).where(Job.key == recipe.key, IS_USABLE))
    if before is not None:
        before.cancel_requested = False
        is_done = before.state == JobState.SUCCEEDED
        counted.wanted(session, [(before.kind, Reuse.CACHED if is_done else Reuse.JOINED)])
        return before.id, None
    priority, place = _turn(session, queue, client, target)
    job = Job(
        key=recipe.key,
        kind=JobKind.INFER,
        title=f"infer {engine.model}:{engine.precision}@{target}",
        state=JobState.QUEUED,
        recipe=recipe.document,
        runtime=target.runtime,
        target=str(target),
        precision=engine.precision,
        queue=queue,
        priority=priority,
        client=client,
        place=place,
        needs=0,
        attempt=1,
        first_attempt=1,
        cancel_requested=False,
        queued_at=(at := now()),
        rung_at=at,
        trace=spans.carrier(),
    )
    session.add(job)
    session.flush()
    transitions.record(session, job, JobState.QUEUED)
    counted.wanted(session, [(job.kind, Reuse.RAN)])
    return job.id, Bell.of(job)


def _turn(session: Session, queue: str, client: str, target: Target) -> tuple[int, int]:
    """Priority and place of a client's next inference.

    Raises:
        TooMany: the client has many waiting.
    """
    own = (Job.queue == queue, Job.client == client, Job.kind == JobKind.INFER)
    count = select(func.count()).select_from(Job)
    waiting = session.scalar(count.where(*own, IS_IN_LINE)) or 0
    if waiting >= _MOST_WAITING:
        raise TooMany(f"{waiting} inferences of yours are waiting for {target} already")
    running = session.scalar(count.where(*own, Job.state == JobState.RUNNING)) or 0
    if not waiting and not running:
        return _FIRST
    return _OTHERS, turns.next_place(session, queue, client, _OTHERS)


def _queue(target: Target, fleet: Fleet) -> str:
    queue = policy.run_queue(target, fleet.online_queues)
    if queue is None or not fleet.online_queues.get(queue):
        worker = "a CPU worker" if target.gpu == gpus.CPU else Queue.of(target).worker
        raise Conflict(
            f"no online worker can run {target}: it takes {worker}",
            hint="start one there (farm worker), or run an engine for another GPU: farm workers lists "
            "those online",
        )
    return queue


def _recipe(engine: EngineView, target: Target, inputs: str, tools: Mapping[str, str]) -> Recipe:
    only = engine.inputs[0].name if len(engine.inputs) == 1 else None
    options = engine.options or BuilderOptions()
    params = InferParams(target=target, options=options, only_input=only)
    return Recipe(
        kind=JobKind.INFER,
        stage=STAGES[JobKind.INFER].version,
        params=params.model_dump(mode="json"),
        inputs=dict(zip(_ROLES, (Given(engine.digest), Given(inputs)), strict=True)),
        tools=keys.tools(JobKind.INFER, target.runtime, tools),
    )


def view(session: Session, job_id: int, fleet: Fleet, match: Match | None = None) -> InferenceView:
    """An inference.

    Parameters:
        match: the engine that was chosen for it.

    Raises:
        NotFound
    """
    job = _job(session, job_id)
    facts = job.facts or {}
    return InferenceView(
        id=job.id,
        state=JobState(job.state),
        engine=match.engine.id if match else None,
        target=job.target or "",
        why=match.why if match else None,
        phase=job.phase,
        worker=job.owner,
        waits_for=fleet.waits_for(job),
        error=job.error,
        outputs=facts.get("outputs", []),
        run_ms=facts.get("run_ms"),
        digest=(job.outputs or {}).get(Role.OUTPUTS),
        created_at=job.created_at,
        finished_at=job.finished_at,
    )


def outputs(session: Session, job_id: int) -> str:
    """The digest of what an inference gave.

    Raises:
        NotFound, Conflict: it hasn't succeeded.
    """
    job = _job(session, job_id)
    if job.state != JobState.SUCCEEDED:
        raise Conflict(
            f"inference {job_id} is {job.state}", hint=f"wait for it: GET /v1/infer/{job_id}"
        )
    return str((job.outputs or {})[Role.OUTPUTS])


def cancel(session: Session, job_id: int) -> bool:
    """Cancel an inference that hasn't ended; whether there was anything to cancel.

    Raises:
        NotFound
    """
    job = _job(session, job_id)
    if job.state not in (JobState.QUEUED, JobState.RUNNING) or job.cancel_requested:
        return False
    jobs.cancel(session, [job_id])
    return True


def _job(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None or job.kind != JobKind.INFER:
        raise NotFound(f"there is no inference {job_id}", hint="start one: POST /v1/infer")
    return job
