"""The life of a job: claimed, renewed, finished; and what follows from its end.

Every change of state is a compare-and-set in one place, ``_move``; zero rows mean that somebody else
was there first. Jobs that waited for one that ended become ready in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from farm import registry
from farm.db import now
from farm.errors import FarmError, LeaseLost, StageFailed
from farm.models import Artifact, Build, BuildJob, Event, Job, JobInput, Wanted
from farm.states import (
    BUILD_ENDED,
    BUILD_LIVE,
    LIVE,
    BuildState,
    JobState,
    build_state,
    check_transition,
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a worker holds, with all that it takes to run it."""

    job_id: int
    attempt: int
    kind: str
    title: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]  #: role → digest
    toolchain: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Output:
    """A blob that a job made."""

    digest: str
    bytes: int


def claim(
    session: Session, job_id: int, attempt: int, *, owner: str, lease_s: float
) -> Claim | None:
    """Take a queued job, or None when this attempt isn't there to be taken any more."""
    moved = _move(
        session,
        job_id,
        JobState.QUEUED,
        JobState.RUNNING,
        attempt=attempt,
        owner=owner,
        lease_until=now() + timedelta(seconds=lease_s),
        started_at=now(),
    )
    if not moved:
        return None
    job = session.get_one(Job, job_id)
    record(session, job, JobState.RUNNING, worker=owner)
    _refresh_builds(session, [job_id])
    return Claim(
        job_id=job_id,
        attempt=attempt,
        kind=job.kind,
        title=job.title,
        params=job.recipe["params"],
        inputs=_input_digests(session, job),
        toolchain=job.toolchain,
    )


def _input_digests(session: Session, job: Job) -> dict[str, str]:
    made = session.execute(
        select(JobInput.role, JobInput.output, Job.outputs)
        .join(Job, Job.id == JobInput.needs_id)
        .where(JobInput.job_id == job.id)
    )
    digests = {role: (outputs or {})[output] for role, output, outputs in made}
    given = {r: name for r, name in job.recipe["inputs"].items() if r not in digests}
    return digests | given


def renew(session: Session, job_id: int, attempt: int, *, lease_s: float) -> bool:
    """Extend the lease; return whether the job should be cancelled.

    Raises:
        LeaseLost: when another attempt holds the job, or nobody does.
    """
    until = now() + timedelta(seconds=lease_s)
    cancel = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
        .values(lease_until=until)
        .returning(Job.cancel_requested)
    )
    if cancel is None:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    return bool(cancel)


def wants_cancel(session: Session, job_id: int, attempt: int) -> bool:
    """Whether this attempt should end: no build wants the job, or another attempt holds it."""
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
    """Record a running job's phase and what it printed."""
    if phase is not None:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
            .values(phase=phase, progress=progress)
        )
        session.add(Event(job_id=job_id, kind="phase", data={"phase": phase, "progress": progress}))
    if text:
        session.add(Event(job_id=job_id, kind="log", data={"text": text, "attempt": attempt}))


def succeed(
    session: Session,
    job_id: int,
    attempt: int,
    *,
    outputs: Mapping[str, Output],
    facts: Mapping[str, Any],
) -> list[int]:
    """Finish a job with what it made, and publish the engines that are complete by that.

    The blobs must be in the store already. Returns the ids of the jobs that became ready.

    Raises:
        LeaseLost: the result is refused, since this attempt doesn't hold the job.
    """
    _remember_blobs(session, outputs.values())
    _finish(
        session,
        job_id,
        attempt,
        JobState.SUCCEEDED,
        outputs={role: output.digest for role, output in outputs.items()},
        facts=dict(facts),
        progress=1.0,
    )
    ready = _release_dependents(session, job_id)
    registry.publish(session, job_id)
    _refresh_builds(session, [job_id])
    return ready


def fail(session: Session, job_id: int, attempt: int, error: FarmError) -> None:
    """Finish a job as failed; the jobs that waited for it fail with it.

    Raises:
        LeaseLost
    """
    _finish(session, job_id, attempt, JobState.FAILED, error=describe(error))
    failed = [job_id, *_fail_dependents(session, job_id)]
    _refresh_builds(session, failed)


def end_cancelled(session: Session, job_id: int, attempt: int) -> list[int]:
    """Finish a job whose child was ended because nobody wanted it.

    When a build has joined it in the meantime it is queued again instead; returns it as ready then.

    Raises:
        LeaseLost
    """
    job = _held(session, job_id, attempt)
    if not job.cancel_requested:
        return requeue(session, job, cause="a build joined it while it was being cancelled")
    _finish(session, job_id, attempt, JobState.CANCELLED)
    _refresh_builds(session, [job_id])
    return []


def requeue(session: Session, job: Job, *, cause: str) -> list[int]:
    """Give a running job to the next attempt."""
    moved = _move(
        session,
        job.id,
        JobState.RUNNING,
        JobState.QUEUED,
        attempt=job.attempt,
        values={"attempt": job.attempt + 1},
        owner=None,
        lease_until=None,
        rung_at=None,
        phase=None,
        progress=None,
    )
    if not moved:
        return []
    record(session, job, JobState.QUEUED, cause=cause, attempt=job.attempt + 1)
    _refresh_builds(session, [job.id])
    return [job.id]


def release(session: Session, owner: str) -> list[int]:
    """Give back what a worker holds that is shutting down; that counts as no attempt of its jobs."""
    held = session.scalars(
        _locked(select(Job).where(Job.state == JobState.RUNNING, Job.owner == owner))
    ).all()
    ready: list[int] = []
    for job in held:
        if job.cancel_requested:
            ready += end_cancelled(session, job.id, job.attempt)
        else:
            job.first_attempt += 1
            session.flush()
            ready += requeue(session, job, cause=f"worker {owner} shut down")
    return ready


def has_expired(session: Session) -> bool:
    """Whether a running job's lease has expired."""
    expired = select(Job.id).where(Job.state == JobState.RUNNING, Job.lease_until < now())
    return session.scalar(expired.limit(1)) is not None


def reap(session: Session, *, max_attempts: int) -> list[int]:
    """Requeue running jobs whose lease has expired; past ``max_attempts`` they fail.

    Returns the ids of the jobs that became ready.
    """
    ready: list[int] = []
    expired = session.scalars(
        _locked(
            select(Job).where(Job.state == JobState.RUNNING, Job.lease_until < now()), skip=True
        )
    ).all()
    for job in expired:
        if job.cancel_requested:
            ready += end_cancelled(session, job.id, job.attempt)
        else:
            cause = f"worker {job.owner} was silent past its lease"
            ready += _again_or_fail(session, job, cause, max_attempts)
    return ready


def interrupt(
    session: Session, job_id: int, attempt: int, error: FarmError, *, max_attempts: int
) -> None:
    """Give a job that something outside of it interrupted to a next attempt, a while later; past
    ``max_attempts`` it fails.

    Raises:
        LeaseLost
    """
    job = _held(session, job_id, attempt)
    if _again_or_fail(session, job, error.detail, max_attempts):
        # As if it had been announced just now: the sweep announces it again in a while.
        session.execute(update(Job).where(Job.id == job_id).values(rung_at=now()))


def _again_or_fail(session: Session, job: Job, cause: str, max_attempts: int) -> list[int]:
    if job.attempt - job.first_attempt + 1 < max_attempts:
        return requeue(session, job, cause=cause)
    hint = "look at the job's log and at the worker, then: farm retry"
    error = StageFailed(f"{cause}, in each of {max_attempts} attempts", hint=hint)
    fail(session, job.id, job.attempt, error)
    return []


def cancel(session: Session, job_ids: Iterable[int]) -> None:
    """Cancel those of the jobs that no live build wants."""
    wanted = (
        select(BuildJob.job_id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(Build.state.in_(BUILD_LIVE))
    )
    unwanted = session.scalars(
        _locked(
            select(Job)
            .where(Job.id.in_(list(job_ids)), Job.state.in_(LIVE), Job.id.not_in(wanted))
            .order_by(Job.id)
        )
    ).all()
    for job in unwanted:
        if job.state == JobState.RUNNING:
            job.cancel_requested = True
            continue
        if _move(session, job.id, JobState(job.state), JobState.CANCELLED, finished_at=now()):
            record(session, job, JobState.CANCELLED, cause="no build wants it")


def describe(error: FarmError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail, "hint": error.hint}


def record(session: Session, job: Job, state: JobState, **data: Any) -> None:
    """Write down a change of state."""
    session.add(event(job, state, **data))


def event(job: Job, state: JobState, **data: Any) -> Event:
    """A change of a job's state, to be written down."""
    data = {"kind": job.kind, "title": job.title, "attempt": job.attempt} | data
    return Event(job_id=job.id, kind="job", state=state, data=data, at=now())


def _move(
    session: Session,
    job_id: int,
    old: JobState,
    new: JobState,
    *,
    attempt: int | None = None,
    values: Mapping[str, Any] | None = None,
    **more: Any,
) -> bool:
    """The one place where a job's state changes: a compare-and-set."""
    check_transition(old, new)
    statement = update(Job).where(Job.id == job_id, Job.state == old)
    if attempt is not None:
        statement = statement.where(Job.attempt == attempt)
    result = session.execute(
        statement.values(state=new, **(dict(values or {}) | more)).returning(Job.id)
    )
    return result.scalar() is not None


def _finish(session: Session, job_id: int, attempt: int, state: JobState, **values: Any) -> None:
    values |= {"finished_at": now(), "lease_until": None}
    if not _move(session, job_id, JobState.RUNNING, state, attempt=attempt, values=values):
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    job = session.get_one(Job, job_id, populate_existing=True)
    record(session, job, state, **({"error": job.error} if job.error else {}))


def _held(session: Session, job_id: int, attempt: int) -> Job:
    job: Job | None = session.scalar(_locked(select(Job).where(Job.id == job_id)))
    if job is None or job.attempt != attempt or job.state != JobState.RUNNING:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    return job


def _remember_blobs(session: Session, outputs: Iterable[Output]) -> None:
    for output in outputs:
        if session.get(Artifact, output.digest) is None:
            session.merge(Artifact(digest=output.digest, bytes=output.bytes))


def _release_dependents(session: Session, job_id: int) -> list[int]:
    """Count the inputs down of the jobs that wait for this one; queue those that have them all."""
    edges = dict(
        session.execute(
            select(JobInput.job_id, func.count())
            .join(Job, Job.id == JobInput.job_id)
            .where(JobInput.needs_id == job_id, Job.state == JobState.WAITING)
            .group_by(JobInput.job_id)
            .order_by(JobInput.job_id)
        )
        .tuples()
        .all()
    )
    ready = []
    for dependent_id, count in edges.items():
        left = session.scalar(
            update(Job)
            .where(Job.id == dependent_id, Job.state == JobState.WAITING)
            .values(needs=Job.needs - count)
            .returning(Job.needs)
        )
        if left == 0 and _move(session, dependent_id, JobState.WAITING, JobState.QUEUED):
            job = session.get_one(Job, dependent_id, populate_existing=True)
            record(session, job, JobState.QUEUED)
            ready.append(dependent_id)
    return ready


def _fail_dependents(session: Session, job_id: int) -> list[int]:
    """Fail, all the way down, the jobs that wait for this one."""
    failed: list[int] = []
    causes = [session.get_one(Job, job_id, populate_existing=True)]
    while causes:
        cause = causes.pop()
        origin = cause.error or {}
        error = {
            "code": "input-failed",
            "detail": origin["detail"]
            if origin.get("code") == "input-failed"
            else f"{cause.title} failed: {origin.get('detail')}",
            "hint": origin.get("hint"),
        }
        waiting = session.scalars(
            select(Job)
            .join(JobInput, JobInput.job_id == Job.id)
            .where(JobInput.needs_id == cause.id, Job.state == JobState.WAITING)
            .order_by(Job.id)
        ).unique()
        for job in waiting.all():
            values = {"error": error, "finished_at": now()}
            if _move(session, job.id, JobState.WAITING, JobState.FAILED, values=values):
                session.refresh(job)
                record(session, job, JobState.FAILED, error=error)
                failed.append(job.id)
                causes.append(job)
    return failed


def _refresh_builds(session: Session, job_ids: Sequence[int]) -> None:
    """Let the states of the builds that want these jobs follow from their jobs' states."""
    builds = session.scalars(
        _locked(
            select(Build)
            .where(
                Build.id.in_(select(BuildJob.build_id).where(BuildJob.job_id.in_(job_ids))),
                Build.state.in_(BUILD_LIVE),
            )
            .order_by(Build.id)
        )
    ).all()
    for build in builds:
        refresh_build(session, build)


def refresh_build(session: Session, build: Build) -> None:
    """Let a live build's state follow from its jobs' states."""
    states = session.scalars(
        select(Job.state)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build.id)
    )
    set_build_state(session, build, build_state(map(JobState, states)))


def set_build_state(session: Session, build: Build, state: BuildState) -> None:
    """Move a build to a state, with its times and its event; nothing when it is there already."""
    if state == build.state:
        return
    build.state = state
    if state != BuildState.QUEUED and build.started_at is None:
        build.started_at = now()
    if state in BUILD_ENDED:
        build.finished_at = now()
    done = session.scalar(
        select(func.count()).where(Wanted.build_id == build.id, Wanted.engine_id.is_not(None))
    )
    session.add(Event(build_id=build.id, kind="build", state=state, data={"engines_done": done}))


def _locked(statement: Select[Any], *, skip: bool = False) -> Select[Any]:
    """Lock the rows on Postgres; SQLite has one writer, and ignores it."""
    return statement.with_for_update(skip_locked=skip)
