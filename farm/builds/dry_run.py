"""What a submission would do: planned in a transaction that is rolled back, so that nothing is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sqlalchemy.orm import Session

from farm.builds.attach import made_inputs, needed_keys, reuse_of, usable_jobs
from farm.builds.history import History, Sought
from farm.builds.outlook import Coming, Outlook, Who, outlook
from farm.builds.submit import Prepared, Terms, prepare
from farm.builds.versions import absent
from farm.database.base import now
from farm.database.job_rows import JobRow
from farm.fleet.workers import Fleet
from farm.formats.sources import TAKEN, Look
from farm.planning import policy, targets
from farm.planning.forecast import Forecast
from farm.planning.jobs import PlannedJob
from farm.schemas import forecast as shown
from farm.schemas.submission import BuildRequest
from farm.specs.roles import Role
from farm.specs.source import SourceFormat
from farm.specs.states import JobState, Reuse
from farm.store import artifacts

_UNSEEN = (
    "the source isn't uploaded: whether it can be read, and has the inputs of the version before"
)
_UNSEEN_GRAPH = (
    "the source isn't uploaded: whether its graph is quantised, and so needs no calibration data"
)


def dry_run(
    session: Session,
    request: BuildRequest,
    terms: Terms,
    history: History,
    *,
    look: Look,
    client: str,
    source_bytes: int | None,
) -> shown.DryRun:
    """What a submission would do. Rolls the session back.

    Its blobs needn't have been uploaded: keys are made of digests.

    Parameters:
        source_bytes: the source's size, if it hasn't been.

    Raises:
        FarmError: as ``submit.prepare``.
    """
    lacking = absent(session, request)
    is_unseen = Role.SOURCE in lacking and request.source.format is SourceFormat.ONNX
    found = prepare(session, request, terms, TAKEN if is_unseen else look, may_be_absent=True)
    size = artifacts.size(session, request.source.digest) or source_bytes
    foretold = _Foretold(session, found, terms.fleet, history, size)
    ahead = foretold.outlook(client)
    version = found.version
    told = shown.DryRun(
        model=found.request.model,
        version=version.number,
        is_new_version=version.is_new,
        jobs=[foretold.job(job) for job in foretold.jobs],
        engines=_engines(found, foretold.new),
        left_out=list(found.chosen.left_out or ()),
        absent=[shown.Absent(role=role, digest=digest) for role, digest in lacking.items()],
        unchecked=_unchecked(request, lacking),
        queues=foretold.queues(ahead),
        wall=shown.WallForecast(
            took=shown.Seconds(**ahead.took._asdict()) if ahead.took else None,
            is_least=ahead.is_least,
            unknown=ahead.unknown,
            stuck=len(ahead.stuck),
        ),
    )
    session.rollback()
    return told


class _Foretold:
    """The jobs of a plan: those that are there, and those that would be new."""

    def __init__(
        self,
        session: Session,
        found: Prepared,
        fleet: Fleet,
        history: History,
        source_bytes: int | None,
    ) -> None:
        self._session = session
        self._found = found
        self._fleet = fleet
        self._there = usable_jobs(session, found.planned)
        needed = needed_keys(found.planned, self._there)
        self.jobs = [
            job for key, job in found.planned.jobs.items() if key in needed or key in self._there
        ]
        self.new = {job.key for job in self.jobs if job.key not in self._there}
        self._coming = [job for job in self.jobs if not self._has_succeeded(job)]
        self._forecasts: Mapping[str, Forecast | None] = {
            job.key: (source_bytes and history.forecast(session, _sought(job, source_bytes)))
            or None
            for job in self._coming
        }
        self._history = history

    def _has_succeeded(self, job: PlannedJob) -> bool:
        row = self._there.get(job.key)
        return row is not None and row.state == JobState.SUCCEEDED

    def outlook(self, client: str) -> Outlook:
        own = [row.id for row in self._there.values() if row.state != JobState.SUCCEEDED]
        return outlook(
            self._session,
            self._fleet,
            self._history,
            [self._comes(job) for job in self._coming],
            Who(client=client, priority=self._found.request.priority, own=own),
        )

    def _comes(self, job: PlannedJob) -> Coming:
        found, row = self._forecasts[job.key], self._there.get(job.key)
        coming = Coming(
            key=job.key,
            queue=job.queue if row is None else row.queue,
            took=found.took_s if found else None,
            after=[one.key for one in made_inputs(job).values()],
        )
        if row is None or row.state != JobState.RUNNING or row.started_at is None:
            return coming
        return replace(coming, running_for_s=(now() - row.started_at).total_seconds())

    def job(self, job: PlannedJob) -> shown.ForeseenJob:
        row, found = self._there.get(job.key), self._forecasts.get(job.key)
        is_done = row is not None and row.state in (JobState.SUCCEEDED, JobState.RUNNING)
        queue = job.queue if row is None else row.queue
        return shown.ForeseenJob(
            key=job.key,
            kind=job.kind,
            title=job.title,
            reuse=Reuse.RAN if row is None else reuse_of(row),
            job=row.id if row else None,
            state=JobState(row.state) if row else None,
            runtime=job.target.runtime if job.target else None,
            target=str(job.target) if job.target else None,
            precision=job.precision,
            queue=queue,
            after=[one.key for one in made_inputs(job).values()],
            waits_for=None if is_done else self._fleet.lacks(queue),
            forecast=_shown(found) if found else None,
        )

    def queues(self, found: Outlook) -> list[shown.QueueForecast]:
        rows: Mapping[str, JobRow] = self._there
        awaited = [
            rows[job.key].queue if job.key in rows else job.queue
            for job in self._coming
            if job.key not in rows or rows[job.key].state != JobState.RUNNING
        ]
        return [
            shown.QueueForecast(
                queue=queue,
                jobs=count,
                workers=self._fleet.online_queues.get(queue, 0),
                ahead=found.ahead[queue].jobs,
                more_urgent=found.ahead[queue].more_urgent,
                own=found.ahead[queue].own,
                starts_s=found.starts_s.get(queue),
                waits_for=self._fleet.lacks(queue),
            )
            for queue, count in Counter(awaited).items()
        ]


def _sought(job: PlannedJob, source_bytes: int) -> Sought:
    target = job.target
    return Sought(
        job.kind,
        target.runtime if target else None,
        job.precision,
        str(target) if target else None,
        source_bytes,
    )


def _shown(found: Forecast) -> shown.JobForecast:
    peak = found.peak_memory_bytes
    return shown.JobForecast(
        jobs=found.jobs,
        took=shown.Seconds(**found.took_s._asdict()),
        peak_memory=None
        if peak is None
        else shown.Bytes(
            **{name: value and round(value) for name, value in peak._asdict().items()}
        ),
    )


def _engines(found: Prepared, new: Iterable[str]) -> list[shown.ForeseenEngine]:
    engines = []
    for one in found.planned.engines:
        note = policy.note(one.choice.target, one.precision)
        engines.append(
            shown.ForeseenEngine(
                asked=one.choice.asked,
                target=str(one.choice.target),
                why=f"{one.choice.why}; {note}" if note else one.choice.why,
                precision=one.precision,
                warning=targets.warning(one.choice.asked, one.choice.target),
                is_new=not {one.build.key, one.measure.key}.isdisjoint(new),
            )
        )
    return engines


def _unchecked(request: BuildRequest, lacking: Mapping[str, str]) -> list[str]:
    if Role.SOURCE not in lacking:
        return []
    if request.source.format is not SourceFormat.ONNX or request.calibration:
        return [_UNSEEN]
    return [_UNSEEN, _UNSEEN_GRAPH]
