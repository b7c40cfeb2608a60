"""The life of a job: claimed, renewed, finished; and what follows from its end.

Jobs that waited for one that ended become ready in the same transaction (``farm.advance``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.orm import Session

from farm import advance
from farm.database.base import now
from farm.database.tables import Build, BuildJob, Event, Job, JobInput, JobLog
from farm.errors import FarmError, LeaseLost, StageFailed
from farm.planning import parameters
from farm.registry import publish
from farm.specs.stages import JobKind
from farm.specs.states import BUILD_ENDED, LIVE, JobState
from farm.store import artifacts
from farm.turns import Bell

#: Other workers have this long to come for a job that one couldn't run.
_LEAVE_FOR = timedelta(seconds=5)
_OF_AN_ENGINE = (JobKind.BUILD, JobKind.MEASURE)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a worker holds, with all that it takes to run it."""

    job_id: int
    attempt: int
    key: str
    kind: str
    title: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]  #: role → digest
    toolchain: Mapping[str, str]
    announced: bool  #: whether a message was sent for this attempt


@dataclass(frozen=True, kw_only=True)
class Output:
    """A blob that a job made."""

    digest: str
    bytes: int


def claim(
    session: Session, job_id: int, attempt: int, *, owner: str, lease_s: float
) -> Claim | None:
    """Take a queued job, or None when this attempt isn't there to be taken any more."""
    job = advance.move(
        session,
        job_id,
        JobState.QUEUED,
        JobState.RUNNING,
        of_attempt=attempt,
        owner=owner,
        lease_until=now() + timedelta(seconds=lease_s),
        started_at=now(),
        phase=None,
    )
    if job is None:
        return None
    advance.record(session, job, JobState.RUNNING, worker=owner)
    advance.start_builds(session, job_id)
    return Claim(
        job_id=job_id,
        attempt=attempt,
        key=job.key,
        kind=job.kind,
        title=job.title,
        params=parameters.whole(session, job.recipe)["params"],
        inputs=_input_digests(session, job_id, job.recipe),
        toolchain=job.toolchain,
        announced=job.rung_at is not None,
    )


def _input_digests(session: Session, job_id: int, recipe: Mapping[str, Any]) -> dict[str, str]:
    made = session.connection().execute(_INPUTS, {"job_id": job_id})
    digests = {role: (outputs or {})[output] for role, output, outputs in made}
    given = {r: name for r, name in recipe["inputs"].items() if r not in digests}
    return digests | given


_INPUTS = (
    select(JobInput.role, JobInput.output, Job.outputs)
    .join(Job, Job.id == JobInput.needs_id)
    .where(JobInput.job_id == bindparam("job_id"))
)


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
        printed = Event(job_id=job_id, kind="log", data={"attempt": attempt})
        session.add(printed)
        session.flush()  # numbers it
        session.add(JobLog(event_id=printed.id, text=_encodable(text)))


def _encodable(text: str) -> str:
    # A file's name, as errors have it, may hold lone surrogates.
    return text.encode(errors="backslashreplace").decode()


def succeed(
    session: Session,
    job_id: int,
    attempt: int,
    *,
    outputs: Mapping[str, Output],
    facts: Mapping[str, Any],
) -> list[Bell]:
    """Finish a job with what it made, and publish the engines that are complete by that.

    The blobs must be in the store already. Returns the bells of the jobs that became ready.

    Raises:
        LeaseLost: the result is refused, since this attempt doesn't hold the job.
    """
    _remember_blobs(session, outputs.values())
    job = _finish(
        session,
        job_id,
        attempt,
        JobState.SUCCEEDED,
        outputs={role: output.digest for role, output in outputs.items()},
        facts=dict(facts),
        progress=1.0,
    )
    ready = advance.release_dependents(session, job_id)
    # An engine is complete by its last job. When two end at once, the second must see the first.
    wanting = advance.locked_builds(session, [job_id])
    if job.kind in _OF_AN_ENGINE:
        publish.publish(session, job_id)
    advance.refresh_builds(session, wanting)
    return ready


def fail(session: Session, job_id: int, attempt: int, error: FarmError) -> None:
    """Finish a job as failed; the jobs that waited for it fail with it.

    Raises:
        LeaseLost
    """
    _finish(session, job_id, attempt, JobState.FAILED, error=describe(error))
    failed = [job_id, *advance.fail_dependents(session, job_id)]
    advance.refresh_builds(session, advance.locked_builds(session, failed))


def end_cancelled(session: Session, job_id: int, attempt: int) -> None:
    """Finish a job whose child was ended because nobody wanted it.

    When a build has joined it in the meantime it is queued again instead.

    Raises:
        LeaseLost
    """
    job = _held(session, job_id, attempt)
    if not job.cancel_requested:
        job.first_attempt += 1
        requeue(session, job, cause="a build joined it while it was being cancelled")
        return
    _finish(session, job_id, attempt, JobState.CANCELLED)
    advance.refresh_builds(session, advance.locked_builds(session, [job_id]))


def requeue(session: Session, job: Job, *, cause: str) -> bool:
    """Give a running job to the next attempt, which the sweep announces."""
    moved = advance.move(
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
    advance.record(session, moved, JobState.QUEUED, cause=cause)
    advance.refresh_builds(session, advance.locked_builds(session, [job.id]))
    return True


def release(session: Session, owner: str, attempts: Mapping[int, int]) -> None:
    """Give back what a worker holds that is shutting down; that counts as no attempt of its jobs.

    Parameters:
        attempts: of each job that it claimed. A worker of the same name may be at work already.
    """
    held = session.scalars(
        advance.locked_rows(
            select(Job)
            .where(Job.id.in_(attempts), Job.state == JobState.RUNNING, Job.owner == owner)
            .order_by(Job.id)
        )
    ).all()
    for job in held:
        if attempts[job.id] != job.attempt:
            continue
        if job.cancel_requested:
            end_cancelled(session, job.id, job.attempt)
        else:
            job.first_attempt += 1
            requeue(session, job, cause=f"worker {owner} shut down")


class Lease(NamedTuple):
    """What a worker renews while it holds a job: each renewal is another lease."""

    job_id: int
    attempt: int
    until: datetime | None


def leases(session: Session) -> list[Lease]:
    """The leases of all running jobs."""
    rows = session.execute(
        select(Job.id, Job.attempt, Job.lease_until).where(Job.state == JobState.RUNNING)
    )
    return [Lease(*row) for row in rows]


def reap(session: Session, lease: Lease, *, max_attempts: int) -> None:
    """Requeue a job whose worker hasn't renewed this lease in time; past ``max_attempts`` it fails."""
    job = locked(session, [lease.job_id])[lease.job_id]
    if job.state != JobState.RUNNING or Lease(job.id, job.attempt, job.lease_until) != lease:
        return  # it was renewed just now, or ended
    if job.cancel_requested:
        end_cancelled(session, job.id, job.attempt)
    else:
        cause = f"worker {job.owner} was silent past its lease"
        _again_or_fail(session, job, cause, max_attempts)


def interrupt(
    session: Session,
    job_id: int,
    attempt: int,
    error: FarmError,
    *,
    max_attempts: int,
    wait_s: tuple[float, float],
) -> None:
    """Give a job that something outside of it interrupted to a next attempt, a while later; past
    ``max_attempts`` it fails.

    Parameters:
        wait_s: before the next attempt, at first, and at most.

    Raises:
        LeaseLost
    """
    job = _held(session, job_id, attempt)
    first_s, most_s = wait_s
    wait = timedelta(seconds=min(first_s * 4.0 ** min(attempt - job.first_attempt, 20), most_s))
    if _again_or_fail(session, job, error.detail, max_attempts):
        until = now() + wait
        why = f"interrupted: {error.detail}"[:100]
        values = {"not_before": until, "phase": why}
        session.execute(update(Job).where(Job.id == job_id).values(values))


def leave(session: Session, job_id: int, attempt: int, cause: str) -> None:
    """Give a job that this worker can't run to a next attempt, a while later; that counts as none.

    When no build wants it any more it is cancelled.

    Raises:
        LeaseLost
    """
    job = _held(session, job_id, attempt)
    if job.cancel_requested:
        end_cancelled(session, job_id, attempt)
        return
    job.first_attempt += 1
    if requeue(session, job, cause=cause):
        later = {"not_before": now() + _LEAVE_FOR, "phase": cause[:100]}
        session.execute(update(Job).where(Job.id == job.id).values(later))


def locked(session: Session, job_ids: Iterable[int]) -> dict[int, Job]:
    """Jobs by their ids, locked in order until the end of the unit of work."""
    statement = select(Job).where(Job.id.in_(list(job_ids))).order_by(Job.id)
    return {job.id: job for job in session.scalars(advance.locked_rows(statement))}


def _again_or_fail(session: Session, job: Job, cause: str, max_attempts: int) -> bool:
    if job.attempt - job.first_attempt + 1 < max_attempts:
        return requeue(session, job, cause=cause)
    hint = "look at the job's log and at the worker, then: farm retry"
    error = StageFailed(f"{cause}, in each of {max_attempts} attempts", hint=hint)
    fail(session, job.id, job.attempt, error)
    return False


def cancel(session: Session, job_ids: Iterable[int]) -> None:
    """Cancel those of the jobs that no live build wants."""
    wanted = (
        select(BuildJob.job_id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(BuildJob.job_id == Job.id, Build.state.not_in(BUILD_ENDED))
        .exists()
    )
    unwanted = session.scalars(
        advance.locked_rows(
            select(Job)
            .where(Job.id.in_(list(job_ids)), Job.state.in_(LIVE), ~wanted)
            .order_by(Job.id)
        )
    ).all()
    for job in unwanted:
        if job.state == JobState.RUNNING:
            job.cancel_requested = True
            continue
        if advance.move(
            session, job.id, JobState(job.state), JobState.CANCELLED, finished_at=now()
        ):
            advance.record(session, job, JobState.CANCELLED, cause="no build wants it")


def _finish(
    session: Session, job_id: int, attempt: int, state: JobState, **values: Any
) -> Row[*tuple[Any, ...]]:
    values |= {"finished_at": now(), "lease_until": None}
    job = advance.move(session, job_id, JobState.RUNNING, state, of_attempt=attempt, **values)
    if job is None:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    advance.record(session, job, state, **({"error": job.error} if job.error else {}))
    return job


def _held(session: Session, job_id: int, attempt: int) -> Job:
    job = locked(session, [job_id])[job_id]
    if job.attempt != attempt or job.state != JobState.RUNNING:
        raise LeaseLost(f"job {job_id} isn't held by attempt {attempt} any more")
    return job


def _remember_blobs(session: Session, outputs: Iterable[Output]) -> None:
    # In one order, so that two jobs which made the same files don't wait for each other.
    for output in sorted(outputs, key=lambda output: output.digest):
        artifacts.remember(session, output.digest, size=output.bytes)


def describe(error: FarmError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail, "hint": error.hint}
