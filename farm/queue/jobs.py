"""A job's life cycle: claim, finish, cancel, and the consequences of its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Build, BuildJob, Event, Job, JobInput, JobLog
from farm.errors import FarmError, LeaseLost
from farm.planning import parameters
from farm.planning.recipe import Given, Recipe
from farm.queue import build_states, counted, transitions, turns
from farm.queue.turns import Bell
from farm.registry import interfaces, publish
from farm.specs.states import BUILD_ENDED, LIVE, BuildState, JobState, Requeued
from farm.stages import STAGES, JobKind
from farm.store import artifacts
from farm.tracing import spans


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a worker holds, with everything needed to run it."""

    job_id: int
    attempt: int
    key: str
    kind: str
    title: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]  #: role → digest
    toolchain: Mapping[str, str]
    announced: bool  #: whether a message was sent for this attempt
    build: str | None = None  #: the first of the live builds that want it
    reuse: str | None = None  #: how that build got it
    target: str | None = None
    precision: str | None = None
    #: Headers that name the spans of those that wait for it: the one it is part of, then the others.
    traces: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Output:
    """A blob output by a job."""

    digest: str
    bytes: int


def claim(
    session: Session, job_id: int, attempt: int, *, owner: str, lease_s: float
) -> Claim | None:
    """Claim a queued job; return None if this attempt can no longer be claimed."""
    job = transitions.move(
        session,
        job_id,
        JobState.QUEUED,
        JobState.RUNNING,
        of_attempt=attempt,
        **_held_by(owner, lease_s),
    )
    return None if job is None else _claimed(session, job, owner)


def claim_first(
    session: Session, job_id: int, *, owner: str, lease_s: float, longest_s: float
) -> Claim | None:
    """Claim the first job in line, in the queue where this job is or was.

    Returns:
        None if there is none, or others have locked all: ``is_in_line`` tells, in another unit of work.

    Parameters:
        longest_s: the longest time for which a job is held back.
    """
    job = transitions.start_first(session, job_id, longest_s=longest_s, **_held_by(owner, lease_s))
    return None if job is None else _claimed(session, job, owner)


def is_in_line(session: Session, job_id: int, *, longest_s: float) -> bool:
    """Whether a job is in line, in the queue where this job is or was, be it locked or not."""
    values = {"job_id": job_id} | turns.due(longest_s)
    return session.connection().scalar(turns.IN_LINE, values) is not None


def _held_by(owner: str, lease_s: float) -> dict[str, Any]:
    at = now()
    until = at + timedelta(seconds=lease_s)
    return {"owner": owner, "lease_until": until, "started_at": at, "outdated": None, "phase": None}


def _claimed(session: Session, job: Any, owner: str) -> Claim:
    """What is to be done for a job that was just moved to running."""
    transitions.record(session, job, JobState.RUNNING, worker=owner)
    recipe = Recipe.read(job.recipe)
    wanting = session.connection().execute(_WANTING, {"job_id": job.id}).all()
    if any(build.state == BuildState.QUEUED for build in wanting):
        build_states.start_builds(session, job.id)
    return Claim(
        job_id=job.id,
        attempt=job.attempt,
        key=job.key,
        kind=job.kind,
        title=job.title,
        params=parameters.whole(session, recipe),
        inputs=_input_digests(session, job.id, recipe),
        toolchain=recipe.tools,
        announced=job.rung_at is not None,
        build=wanting[0].id if wanting else None,
        reuse=wanting[0].reuse if wanting else None,
        target=job.target,
        precision=job.precision,
        traces=_traces(job, wanting),
    )


def _traces(job: Any, wanting: Sequence[Any]) -> list[dict[str, str]]:
    """The contexts of the builds that want a job; without builds, its own."""
    found = [spans.of_reserved(build.trace) for build in wanting] or [job.trace]
    return [one for one in found if one is not None]


def _input_digests(session: Session, job_id: int, recipe: Recipe) -> dict[str, str]:
    given = {role: one.digest for role, one in recipe.inputs.items() if isinstance(one, Given)}
    if len(given) == len(recipe.inputs):
        return given
    rows = session.connection().execute(_INPUTS, {"job_id": job_id})
    return {role: (outputs or {})[output] for role, output, outputs in rows} | given


_WANTING = (
    select(Build.id, Build.state, Build.trace, BuildJob.reuse)
    .join(BuildJob, BuildJob.build_id == Build.id)
    .where(BuildJob.job_id == bindparam("job_id"), Build.state.not_in(BUILD_ENDED))
    .order_by(Build.id)
)


_INPUTS = (
    select(JobInput.role, JobInput.output, Job.outputs)
    .join(Job, Job.id == JobInput.needs_id)
    .where(JobInput.job_id == bindparam("job_id"))
)


def wants_cancel(session: Session, job_id: int, attempt: int) -> bool:
    """Whether this attempt should stop: no build needs the job, or another attempt holds it."""
    row = session.execute(
        select(Job.cancel_requested, Job.state, Job.attempt).where(Job.id == job_id)
    ).one_or_none()
    return row is None or row[0] or row[1] != JobState.RUNNING or row[2] != attempt


def report(
    session: Session,
    job_id: int,
    attempt: int,
    *,
    phase: str | None = None,
    progress: float | None = None,
    text: str = "",
) -> None:
    """Record a running job's phase and output."""
    if phase is not None:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
            .values(phase=phase, progress=progress)
        )
        session.add(Event(job_id=job_id, kind="phase", data={"phase": phase, "progress": progress}))
    if text:
        printed = Event(job_id=job_id, kind="log", data={"attempt": attempt})
        session.add(printed)
        session.flush()  # assigns its number
        session.add(JobLog(event_id=printed.id, text=_encodable(text)))


def _encodable(text: str) -> str:
    # A file name in an error may contain lone surrogates.
    return text.encode(errors="backslashreplace").decode()


def succeed(
    session: Session,
    job_id: int,
    attempt: int,
    *,
    outputs: Mapping[str, Output],
    facts: Mapping[str, Any],
) -> list[Bell]:
    """Finish a job with its outputs, and publish the engines it completes.

    The blobs must already be in the store. Returns the bells of the jobs that became ready.

    Raises:
        LeaseLost: this attempt doesn't hold the job, so the result is refused.
    """
    _remember_blobs(session, job_id, outputs.values())
    job = _finish(
        session,
        job_id,
        attempt,
        JobState.SUCCEEDED,
        outputs={role: output.digest for role, output in outputs.items()},
        facts=dict(facts),
        progress=1.0,
    )
    ready = transitions.release_dependents(session, job_id)
    # Its last job completes an engine. If two end at once, the second must see the first.
    wanting = build_states.locked_builds(session, [job_id])
    interfaces.learn(session, job_id, job.kind, facts)
    if STAGES[JobKind(job.kind)].ends_engine:
        publish.publish(session, job_id)
    build_states.refresh_builds(session, wanting)
    return ready


def fail(session: Session, job_id: int, attempt: int, error: FarmError) -> None:
    """Finish a job as failed; the jobs waiting for it fail too.

    Raises:
        LeaseLost
    """
    _finish(session, job_id, attempt, JobState.FAILED, error=describe(error))
    failed = [job_id, *transitions.fail_dependents(session, job_id)]
    build_states.refresh_builds(session, build_states.locked_builds(session, failed))


def fail_outdated(session: Session, job_id: int, error: FarmError) -> None:
    """Fail a job whose builds can't be replanned, and the jobs waiting for it."""
    job = locked(session, [job_id])[job_id]
    if job.state != JobState.QUEUED or job.outdated is None:
        return  # a worker has its tools by now
    moved = transitions.move(
        session,
        job_id,
        JobState.QUEUED,
        JobState.FAILED,
        error=describe(error),
        finished_at=now(),
        outdated=None,
    )
    assert moved is not None
    transitions.record(session, moved, JobState.FAILED, error=moved.error)
    failed = [job_id, *transitions.fail_dependents(session, job_id)]
    build_states.refresh_builds(session, build_states.locked_builds(session, failed))


def end_cancelled(session: Session, job_id: int, attempt: int) -> None:
    """Finish a job that was stopped because no build needed it.

    If a build has joined it in the meantime, it is requeued instead.

    Raises:
        LeaseLost
    """
    job = held(session, job_id, attempt)
    if not job.cancel_requested:
        job.first_attempt += 1
        cause = "a build joined it while it was being cancelled"
        requeue(session, job, Requeued.REJOINED, cause=cause)
        return
    _finish(session, job_id, attempt, JobState.CANCELLED)
    build_states.refresh_builds(session, build_states.locked_builds(session, [job_id]))


def requeue(session: Session, job: Job, why: Requeued, *, cause: str) -> bool:
    """Requeue a running job as its next attempt, which the sweep announces."""
    moved = transitions.move(
        session,
        job.id,
        JobState.RUNNING,
        JobState.QUEUED,
        of_attempt=job.attempt,
        attempt=job.attempt + 1,
        owner=None,
        lease_until=None,
        rung_at=None,
        phase=None,
        progress=None,
    )
    if not moved:
        return False
    counted.requeued(session, moved.kind, why)
    transitions.record(session, moved, JobState.QUEUED, cause=cause)
    build_states.refresh_builds(session, build_states.locked_builds(session, [job.id]))
    return True


def locked(session: Session, job_ids: Iterable[int]) -> dict[int, Job]:
    """Lock jobs in order, until the end of the unit of work; return them by id."""
    statement = select(Job).where(Job.id.in_(list(job_ids))).order_by(Job.id)
    return {job.id: job for job in session.scalars(transitions.locked_rows(statement))}


def cancel(session: Session, job_ids: Iterable[int]) -> None:
    """Cancel the jobs among these that no live build wants."""
    wanted = (
        select(BuildJob.job_id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(BuildJob.job_id == Job.id, Build.state.not_in(BUILD_ENDED))
        .exists()
    )
    unwanted = session.scalars(
        transitions.locked_rows(
            select(Job)
            .where(Job.id.in_(list(job_ids)), Job.state.in_(LIVE), ~wanted)
            .order_by(Job.id)
        )
    ).all()
    for job in unwanted:
        if job.state == JobState.RUNNING:
            job.cancel_requested = True
            continue
        if transitions.move(
            session, job.id, JobState(job.state), JobState.CANCELLED, finished_at=now()
        ):
            transitions.record(session, job, JobState.CANCELLED, cause="no build wants it")


def _finish(
    session: Session, job_id: int, attempt: int, state: JobState, **values: Any
) -> Row[*tuple[Any, ...]]:
    values |= {"finished_at": now(), "lease_until": None}
    job = transitions.move(session, job_id, JobState.RUNNING, state, of_attempt=attempt, **values)
    if job is None:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    transitions.record(session, job, state, **({"error": job.error} if job.error else {}))
    return job


def held(session: Session, job_id: int, attempt: int) -> Job:
    job = locked(session, [job_id])[job_id]
    if job.attempt != attempt or job.state != JobState.RUNNING:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    return job


def _remember_blobs(session: Session, job_id: int, outputs: Iterable[Output]) -> None:
    # In a fixed order, so that two jobs with the same outputs don't deadlock.
    sizes = dict(sorted((one.digest, one.bytes) for one in outputs))
    artifacts.remember_all(session, sizes, job_id=job_id)


def describe(error: FarmError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail, "hint": error.hint}
