"""Replanning builds: on a retry, or because their workers' tools have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from farm.builds.attach import Before, Submitted, attach_jobs
from farm.builds.cancel import locked
from farm.builds.planned import gates_of, plan_of, stored_request
from farm.builds.versions import version_of
from farm.database.tables import (
    IS_OUTDATED,
    IS_QUEUED,
    Build,
    BuildJob,
    Event,
    Job,
    Model,
    Version,
    Wanted,
)
from farm.errors import Conflict, InputFailed, code_of, recurs
from farm.fleet.workers import Fleet
from farm.planning.targets import Choice
from farm.queue import jobs, turns
from farm.queue.turns import Bell
from farm.registry import versions
from farm.registry.names import Named
from farm.schemas.submission import BuildRequest
from farm.specs.precision import Precision
from farm.specs.runtime import Target
from farm.specs.states import BUILD_ENDED, BuildState, JobState, Reuse
from farm.tracing import spans

_AT_ONCE = 100
#: The code of a job that failed because one before it did.
_FOLLOWS = code_of(InputFailed)
_FORCE = "if what was wrong is mended outside of the request: farm retry --force (?force=true)"


def retry_build(session: Session, build_id: str, *, fleet: Fleet, force: bool = False) -> Submitted:
    """Replan a failed or cancelled build with the current toolchain.

    It keeps its targets. Succeeded jobs are kept; failed ones run again. A live or succeeded build is left
    unchanged.

    Parameters:
        force: even if every failed job would only fail again.

    Raises:
        NotFound
        Conflict: it would only fail again.
    """
    _hold_version(session, build_id)
    build = locked(session, build_id)
    if build.state not in (BuildState.FAILED, BuildState.CANCELLED):
        return Submitted(build_id=build.id, attached=None)
    if build.state == BuildState.FAILED and not force:
        _check_may_pass(session, build, fleet)
    build.state, build.finished_at, build.trace = BuildState.QUEUED, None, spans.reserved()
    session.add(
        Event(build_id=build.id, kind="build", state=build.state, data={"cause": "retried"})
    )
    session.flush()
    request = stored_request(build)
    return _plan_anew(session, build, _choices(session, build_id, request), fleet)


def _hold_version(session: Session, build_id: str) -> None:
    """Keep a build's version from being deleted; before its jobs are locked, as a submission does.

    Raises:
        NotFound: it has been deleted.
    """
    found = session.execute(
        select(Model.id, Model.name, Build.version_id)
        .join(Version, Version.model_id == Model.id)
        .join(Build, Build.version_id == Version.id)
        .where(Build.id == build_id)
    ).one_or_none()
    if found is not None:
        versions.hold(session, Named(id=found.id, name=found.name), found.version_id)


def _check_may_pass(session: Session, build: Build, fleet: Fleet) -> None:
    """Refuse a retry in which nothing would change: all that failed would recur, and the tools are the same.

    Raises:
        Conflict
    """
    rows = session.execute(
        select(Job.key, Job.title, Job.error)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build.id, Job.state == JobState.FAILED)
        .order_by(Job.finished_at, Job.id)
    ).all()
    failed = [row for row in rows if row.error["code"] != _FOLLOWS]
    if not failed or not all(recurs(row.error["code"]) for row in failed):
        return
    request = stored_request(build)
    choices = _choices(session, build.id, request)
    planned = plan_of(request, choices, fleet, gates_of(build)).jobs
    if all(row.key in planned for row in failed):
        said = dict.fromkeys(f"{row.title}: {row.error['detail']}" for row in failed)
        hints = dict.fromkeys(row.error["hint"] for row in failed if row.error.get("hint"))
        raise Conflict(
            f"build {build.id} would fail again: {'; '.join(said)}",
            hint="; or ".join([*hints, "change the request and submit it again", _FORCE]),
        )


def outdated(session: Session) -> Sequence[int]:
    """Jobs that workers declined because they were planned for other tools; not all of them if there are
    many."""
    statement = select(Job.id).where(IS_QUEUED, IS_OUTDATED).order_by(Job.id).limit(_AT_ONCE)
    return session.scalars(statement).all()


def wanting(session: Session, job_id: int) -> Sequence[str]:
    """The live builds that need a job, oldest first."""
    return session.scalars(
        select(Build.id)
        .join(BuildJob, BuildJob.build_id == Build.id)
        .where(BuildJob.job_id == job_id, Build.state.not_in(BUILD_ENDED))
        .order_by(Build.id)
    ).all()


def replan_build(
    session: Session, build_id: str, *, instead_of: int, fleet: Fleet
) -> Sequence[Bell]:
    """Replan a build that needs an outdated job.

    It keeps its targets, since the workers of one of them may just be restarting, and its places in the
    queues. If the plan doesn't change, nothing is done: the worker is the one out of date.

    Parameters:
        instead_of: the outdated job. If it no longer is outdated, nothing is done either.

    Returns:
        The bells to ring after the commit.
    """
    before = session.scalars(select(BuildJob.job_id).where(BuildJob.build_id == build_id)).all()
    # All jobs, then the build: the lock order used everywhere.
    left = jobs.locked(session, {*before, instead_of})[instead_of]
    build = locked(session, build_id)
    if left.state != JobState.QUEUED or left.outdated is None or build.state in BUILD_ENDED:
        return ()
    request = stored_request(build)
    choices = _choices(session, build_id, request)
    if left.key in plan_of(request, choices, fleet, gates_of(build)).jobs:
        return ()
    cause = {"cause": left.outdated}
    session.add(Event(build_id=build.id, kind="build", state=build.state, data=cause))
    session.flush()
    kept = turns.places(session, build)
    ready = _plan_anew(session, build, choices, fleet, kept).ready
    jobs.cancel(session, before)
    return ready


def settle(session: Session, job_id: int) -> None:
    """Record that the builds of an outdated job have been replanned."""
    session.execute(update(Job).where(Job.id == job_id).values(outdated=None))


def _choices(session: Session, build_id: str, request: BuildRequest) -> list[Choice]:
    """The targets chosen for a build, each in its precisions."""
    wanted = session.scalars(select(Wanted).where(Wanted.build_id == build_id)).all()
    order = list(dict.fromkeys([*request.precisions, *Precision]))
    found: dict[str, Choice] = {}
    for one in sorted(wanted, key=lambda one: (one.target, order.index(Precision(one.precision)))):
        choice = found.setdefault(
            one.target, Choice(asked=one.asked, target=Target.parse(one.target), why=one.why)
        )
        precisions = (*choice.precisions, Precision(one.precision))
        found[one.target] = replace(choice, precisions=precisions)
    return list(found.values())


def _plan_anew(
    session: Session,
    build: Build,
    choices: Sequence[Choice],
    fleet: Fleet,
    places: Mapping[str, int] | None = None,
) -> Submitted:
    request = stored_request(build)
    version = version_of(session, request)
    request = version.in_its_name(request)
    planned = plan_of(request, choices, fleet, gates_of(build))
    rows = session.execute(
        select(Job.id, Job.key, Job.attempt, BuildJob.reuse)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build.id)
    ).all()
    before = Before(
        attempts={row.key: row.attempt for row in rows},
        reuse={row.id: Reuse(row.reuse) for row in rows},
        places=places or {},
    )
    session.execute(delete(Wanted).where(Wanted.build_id == build.id))
    session.execute(delete(BuildJob).where(BuildJob.build_id == build.id))
    return attach_jobs(session, build, request.model, version.number, planned, before)
