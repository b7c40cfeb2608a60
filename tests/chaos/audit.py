"""What must be true when the storm is over and every build has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from farm.daemon import gc
from farm.database import references, tallies
from farm.database.session import Database
from farm.database.tables import Artifact, Build, EngineRow, Event, Job, Model, Version
from farm.specs import monitoring
from farm.specs.states import BUILD_LIVE, LIVE, JobState
from farm.store import artifacts
from farm.store.base import Store
from tests.chaos.crowd import Ended
from tests.chaos.site import CLOCKS_OFF_S, Site
from tests.e2e.live import wait_until


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Figures of a storm that the farm came through."""

    jobs: int
    attempts: int  #: more than jobs: these were run again
    engines: int
    blobs: int
    attempts_by_joined: int  #: of them, by machines that joined by a token


def audit(site: Site, ended: Sequence[Ended]) -> Findings:
    """Check every guarantee; raise AssertionError with what is broken."""
    _every_build_ended_well(ended)
    _nothing_runs(site)
    db = Database(site.settings.database)
    try:
        store = site.store()
        # An API whose clock was ahead has dated into the future what it stored.
        gc.collect(db, store, older_than_s=-CLOCKS_OFF_S)
        by_joined = sum(joiner.audited(db) for joiner in site.joiners)
        findings = _database_is_right(db, ended, store, by_joined)
        _tallies_are_right(db, builds=len(ended))
    finally:
        db.dispose()
    return findings


def _every_build_ended_well(ended: Sequence[Ended]) -> None:
    bad = [build for build in ended if build.state not in ("succeeded", "cancelled")]
    assert not bad, bad
    assert len({build.id for build in ended}) == len(ended), "a submission became two builds"


def _nothing_runs(site: Site) -> None:
    wait_until("no stage is left", lambda: not site.stages(), 30)
    wanted = len(site.supervisors)
    wait_until("all workers are there", lambda: len(site.workers()) == wanted, 60)
    site.wait_for_s3()


def _database_is_right(
    db: Database, ended: Sequence[Ended], store: Store, by_joined: int
) -> Findings:
    with db.read() as session:
        assert not session.scalars(select(Job.title).where(Job.state.in_(LIVE))).all()
        assert not session.scalars(select(Job.title).where(Job.lease_until.is_not(None))).all()
        assert not session.scalars(select(Build.id).where(Build.state.in_(BUILD_LIVE))).all()
        assert session.scalar(select(func.count()).select_from(Build)) == len(ended)

        jobs = session.scalars(select(Job)).all()
        succeeded = Counter(job.key for job in jobs if job.state == JobState.SUCCEEDED)
        assert set(succeeded.values()) <= {1}, "a key succeeded twice"
        ends = Counter(
            session.scalars(
                select(Event.job_id).where(Event.state == "succeeded", Event.kind == "job")
            )
        )
        assert set(ends.values()) <= {1}, "a job succeeded twice"
        assert ends.keys() == {job.id for job in jobs if job.state == JobState.SUCCEEDED}

        for file in store.blobs():
            assert store.is_right(file.digest), "not whole"
        known = set(session.scalars(select(Artifact.digest)))
        assert all(map(store.has, known)), "a blob isn't in the store"
        needless = known - references.referred(session)
        assert not needless, ("a blob is kept for nobody", artifacts.ages(session, needless))
        made = {d for job in jobs for d in (job.outputs or {}).values()}
        assert made <= known, "an output isn't in the store"

        engines = Counter(
            session.execute(
                select(Model.name, EngineRow.precision, EngineRow.runtime, EngineRow.gpu)
                .join(Version, Version.id == EngineRow.version_id)
                .join(Model, Model.id == Version.model_id)
            )
            .tuples()
            .all()
        )
        wanted = {want for build in ended if build.state == "succeeded" for want in _wants(build)}
        asked = {want for build in ended for want in _wants(build)}
        assert set(engines.values()) <= {1}, "an engine is in the registry twice"
        assert wanted <= engines.keys() <= asked, wanted ^ engines.keys()
        return Findings(
            jobs=len(jobs),
            attempts=sum(job.attempt - job.first_attempt + 1 for job in jobs),
            engines=len(engines),
            blobs=len(known),
            attempts_by_joined=by_joined,
        )


def _tallies_are_right(db: Database, *, builds: int) -> None:
    """What was counted is what happened: the events, which are written in the same transactions, say so."""
    with db.read() as session:
        counters = tallies.read(session).counters
        assert counters[monitoring.BUILDS_SUBMITTED.name] == {(): builds}
        moves = Counter(
            session.scalars(
                select(Event.state).where(Event.kind == "job", Event.state.not_in(LIVE))
            )
        )
        ends: Counter[str | None] = Counter()
        for (_kind, state, _code), number in counters[monitoring.JOBS_ENDED.name].items():
            ends[state] += number
        assert ends == moves, "an end was counted twice, or not"
        began = select(func.count()).where(Event.kind == "job", Event.state == JobState.RUNNING)
        attempts = sum(counters[monitoring.JOB_ATTEMPTS.name].values())
        assert attempts == session.scalar(began), "an attempt was counted twice, or not"


def _wants(build: Ended) -> set[tuple[str, str, str, str]]:
    return {
        (build.request["model"], precision, *target.split(":"))
        for precision in build.request["precisions"]
        for target in build.request["targets"]
    }
