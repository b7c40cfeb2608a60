"""Builds as the API returns them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from farm.builds.loaded import LoadedBuild
from farm.database.job_rows import JobRow
from farm.database.tables import Build, BuildJob, EngineRow, Job, Model, Version, Wanted
from farm.fleet.workers import Fleet
from farm.planning import policy, targets
from farm.registry import labels, names
from farm.reports import kept
from farm.schemas.builds import BuildSummary, BuildView, JobView, WantedEngine
from farm.schemas.problems import Failure
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.states import BUILD_ENDED, ENDED, BuildState, EngineState, JobState


def build(rows: LoadedBuild, fleet: Fleet) -> BuildView:
    """One build with its jobs and engines."""
    row, states = rows.build, [job.state for job, _ in rows.jobs]
    failed = [job for job, _ in rows.jobs if job.state == JobState.FAILED and job.finished_at]
    first = min(failed, key=lambda job: (job.finished_at, job.id), default=None)
    view = BuildView(
        **{name: getattr(row, name) for name in _BUILD_FIELDS},
        **{name: row.request[name] for name in _REQUEST_FIELDS},
        # Older requests don't have it.
        prune=row.request.get("prune"),
        bench=row.request.get("bench"),
        fixed_inputs=row.request.get("fixed_inputs") or {},
        gates=row.gates,
        model=rows.model,
        version=rows.version,
        jobs_total=len(states),
        jobs_done=sum(state in ENDED for state in states),
        engines_total=len(rows.wanted),
        engines_done=sum(want.engine_id is not None for want in rows.wanted),
        engines_doubtful=sum(bool(rows.doubts.get(w.engine_id or "")) for w in rows.wanted),
        jobs=[_job(job, reuse, fleet) for job, reuse in rows.jobs],
        engines=[_wanted(want, rows.doubts) for want in rows.wanted],
        left_out=row.left_out or [],
        held_back=list(rows.held_back),
    )
    if first and row.state == BuildState.FAILED:
        name = next(view.name_of(job) for job in view.jobs if job.id == first.id)
        view.error = _failure(name, first.error)
    return view


def _failure(name: str, error: Any) -> Failure:
    """A job's failure as part of its build's error, naming the job if there are others."""
    failure = Failure.model_validate(error)
    return failure.model_copy(update={"detail": f"{name}: {failure.detail}"})


_BUILD_FIELDS = "id state priority created_at started_at finished_at".split()


_REQUEST_FIELDS = ("precisions targets labels source calibration evaluation profiles").split()


def _job(job: JobRow, reuse: str, fleet: Fleet) -> JobView:
    columns = {name: getattr(job, name) for name in _JOB_FIELDS}
    return JobView(
        **columns,
        reuse=reuse,
        worker=job.owner,
        facts=kept.shown(job.facts),
        waits_for=fleet.waits_for(job),
    )


_JOB_FIELDS = (
    "id kind title key state queue runtime target precision attempt phase progress error "
    "created_at started_at finished_at"
).split()


def _wanted(row: Wanted, doubts: Mapping[str, Sequence[str]]) -> WantedEngine:
    runtime, _, gpu = row.target.rpartition(":")
    target = Target(runtime=Runtime(runtime), gpu=gpu)
    note = policy.note(target, Precision(row.precision))
    return WantedEngine(
        asked=row.asked,
        target=row.target,
        why=f"{row.why}; {note}" if note else row.why,
        precision=row.precision,
        warning=targets.warning(row.asked, target),
        build_job=row.build_job_id,
        measure_job=row.measure_job_id,
        engine=row.engine_id,
        doubts=list(doubts.get(row.engine_id or "", ())),
    )


def builds(
    session: Session,
    *,
    model: str | None = None,
    state: str | None = None,
    live: bool = False,
    label: Sequence[str] = (),
    before: str | None = None,
    limit: int = 50,
) -> list[BuildSummary]:
    """Builds, newest first.

    Parameters:
        live: only those that haven't ended.

    Raises:
        NotFound, NameAmbiguous: of the model.
    """
    statement = select(Build).order_by(Build.id.desc()).limit(limit)
    if model is not None:
        versions = select(Version.id).where(Version.model_id == names.named(session, model).id)
        statement = statement.where(Build.version_id.in_(versions))
    if state is not None:
        statement = statement.where(Build.state == state)
    if live:
        statement = statement.where(Build.state.not_in(BUILD_ENDED))
    statement = statement.where(*labels.matching(Build, label))
    if before is not None:
        statement = statement.where(Build.id < before)
    return summaries(session, session.scalars(statement).all())


def summaries(session: Session, rows: Sequence[Build]) -> list[BuildSummary]:
    ids = [row.id for row in rows]
    jobs, engines = _jobs_done(session, ids), _engines_done(session, ids)
    doubtful = _doubtful(session, ids)
    versions = _versions(session, {row.version_id for row in rows})
    errors = _errors(session, [row.id for row in rows if row.state == "failed"])
    return [
        BuildSummary(
            **{name: getattr(row, name) for name in _BUILD_FIELDS},
            **{name: row.request[name] for name in ("precisions", "targets", "labels")},
            bench=row.request.get("bench"),
            model=versions[row.version_id][0],
            version=versions[row.version_id][1],
            jobs_total=jobs[row.id][0],
            jobs_done=jobs[row.id][1],
            engines_total=engines[row.id][0],
            engines_done=engines[row.id][1],
            engines_doubtful=doubtful.get(row.id, 0),
            error=errors.get(row.id),
        )
        for row in rows
    ]


def _jobs_done(session: Session, build_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many jobs each build has, and how many of them have ended."""
    ended = func.sum(case((Job.state.in_(ENDED), 1), else_=0))
    return _by_build(
        session,
        select(BuildJob.build_id, func.count(), ended)
        .join(Job, Job.id == BuildJob.job_id)
        .where(BuildJob.build_id.in_(build_ids))
        .group_by(BuildJob.build_id),
    )


def _engines_done(session: Session, build_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many engines each build wants, and how many of them are there."""
    return _by_build(
        session,
        select(Wanted.build_id, func.count(), func.count(Wanted.engine_id))
        .where(Wanted.build_id.in_(build_ids))
        .group_by(Wanted.build_id),
    )


def _doubtful(session: Session, build_ids: Sequence[str]) -> dict[str, int]:
    rows = session.execute(
        select(Wanted.build_id, func.count())
        .join(EngineRow, EngineRow.id == Wanted.engine_id)
        .where(Wanted.build_id.in_(build_ids), EngineRow.state == EngineState.DOUBTFUL)
        .group_by(Wanted.build_id)
    )
    return dict(rows.tuples().all())


def _versions(session: Session, version_ids: Collection[int]) -> dict[int, tuple[str, int]]:
    """The model's name and the version's number."""
    rows = session.execute(
        select(Version.id, Model.name, Version.number)
        .join(Model, Model.id == Version.model_id)
        .where(Version.id.in_(version_ids))
    )
    return {version_id: (name, number) for version_id, name, number in rows}


def _by_build(session: Session, statement: Any) -> dict[str, tuple[int, int]]:
    return {build_id: (total, done) for build_id, total, done in session.execute(statement)}


def _errors(session: Session, build_ids: Sequence[str]) -> dict[str, Failure]:
    """Each build's first failure: later ones follow from it or belong to other jobs."""
    found: dict[str, Failure] = {}
    if not build_ids:
        return found
    rows = session.execute(
        select(BuildJob.build_id, Job.title, Job.error)
        .join(Job, Job.id == BuildJob.job_id)
        .where(BuildJob.build_id.in_(build_ids), Job.state == JobState.FAILED)
        .order_by(Job.finished_at, Job.id)
    )
    for build_id, title, error in rows:
        found.setdefault(build_id, _failure(title, error))
    return found
