"""History goes when it is old, and nothing that anything needs goes with it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from farm.builds import events, logs
from farm.daemon import history
from farm.daemon.keeper import Keeper
from farm.database.base import Base, now
from farm.database.session import Database
from farm.database.tables import (
    AuditRow,
    Build,
    EngineRow,
    Event,
    Job,
    JobLog,
    JobSampleRow,
    Label,
    Wanted,
)
from farm.errors import NotFound, StageFailed
from farm.keeping import history as keeping
from farm.keeping.pulled import Pulled
from farm.queue import jobs, samples
from farm.registry import provenance
from farm.schemas.storage import HistoryReport
from farm.settings import Settings
from farm.specs.history import KeptHistory
from farm.store.local import LocalStore
from tests.ledger import SOURCE, Ledger

ALL = KeptHistory(builds_days=90, events_days=90, logs_days=90, samples_days=90)
BUILDS = KeptHistory(builds_days=90)
OLD = timedelta(days=100)


def age(ledger: Ledger) -> None:
    """Make all that is there old."""
    with ledger.db.write() as session:
        for column in (Build.finished_at, Job.finished_at, Event.at, JobSampleRow.began_at):
            there = column.is_not(None)
            session.execute(update(column.class_).where(there).values({column.key: now() - OLD}))


def rows(ledger: Ledger, table: type[Base]) -> int:
    with ledger.db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def ids(ledger: Ledger) -> list[str]:
    with ledger.db.read() as session:
        return list(session.scalars(select(Build.id).order_by(Build.id)))


def failed(ledger: Ledger, **changes: Any) -> str:
    """A build that fails with its export."""
    build_id = ledger.submit(**changes)
    ledger.fail(ledger.claim_next(), StageFailed("no"))
    return build_id


def talkative(ledger: Ledger) -> None:
    """Run what is queued; each job prints, tells its phase and is sampled."""
    while ledger.queued():
        claim = ledger.claim_next()
        of = (claim.job_id, claim.attempt)
        with ledger.db.write() as session:
            jobs.report(session, *of, phase="works", text="hello\n")
            samples.keep(session, *of, began_at=now(), series={"at_s": [1.0]})
        ledger.succeed(claim)


def test_by_default_nothing_is_forgotten(ledger: Ledger) -> None:
    failed(ledger)
    failed(ledger)
    talkative(ledger)
    age(ledger)
    assert history.forget(ledger.db, Settings().kept_history) == HistoryReport()
    assert rows(ledger, Build) == 2


def test_old_builds_go_with_the_jobs_that_only_they_needed(ledger: Ledger) -> None:
    first = failed(ledger, labels={"team": "vision"})
    last = failed(ledger)
    before = rows(ledger, Job)
    age(ledger)
    lately = failed(ledger, source=ledger.upload(7))
    told = history.forget(ledger.db, BUILDS, dry_run=True)
    assert ids(ledger) == [first, last, lately]
    done = history.forget(ledger.db, BUILDS)
    assert told == done
    # The newest of a version stays, whenever it was.
    assert ids(ledger) == [last, lately]
    assert (done.builds, done.jobs) == (1, before // 2)
    assert rows(ledger, Label) == 1  # the version's
    with ledger.db.read() as session, pytest.raises(NotFound):
        logs.log(session, first, None)
    assert history.forget(ledger.db, BUILDS) == HistoryReport()


def test_a_build_that_an_engine_came_of_stays_with_all_that_its_provenance_names(
    ledger: Ledger,
) -> None:
    first = ledger.submit(precisions=["fp16"])
    ledger.run_all()
    again = ledger.submit(precisions=["fp16"])
    other = ledger.upload(3)
    failed(ledger, source=other)
    newest = failed(ledger, source=other)
    last = ledger.submit(precisions=["fp16"])
    with ledger.db.read() as session:
        engine = session.scalars(select(EngineRow)).one()
        known = provenance.provenance_of(session, engine.id)
        made = {job.id for job in provenance.jobs_of(session, engine.id)}
    assert engine.build_id == first
    age(ledger)
    told = history.forget(ledger.db, BUILDS, dry_run=True)
    done = history.forget(ledger.db, BUILDS)
    assert told == done
    assert again not in ids(ledger)  # it only reused what the first had made
    assert ids(ledger) == [first, newest, last]
    with ledger.db.read() as session:
        assert provenance.provenance_of(session, engine.id) == known
        assert made <= set(session.scalars(select(Job.id)))
    assert ledger.view(last).state == "succeeded"
    assert rows(ledger, Wanted) == 3


def test_what_hasnt_ended_stays_with_the_jobs_that_it_joined_or_found_done(ledger: Ledger) -> None:
    failed(ledger, source=ledger.upload(3))
    ledger.submit(precisions=["fp32"])
    ledger.succeed(ledger.claim_next())  # the export, which the next build takes
    ledger.cancel(ids(ledger)[-1])
    age(ledger)
    live = ledger.submit(precisions=["fp16"])
    history.forget(ledger.db, BUILDS)
    [export] = [job for job in ledger.view(live).jobs if job.kind == "export"]
    assert export.reuse == "cached"
    ledger.run_all()
    assert ledger.view(live).state == "succeeded"


def test_old_logs_phases_and_samples_go_and_the_build_still_tells_how_it_ended(
    ledger: Ledger,
) -> None:
    build_id = ledger.submit()
    talkative(ledger)
    ran = len(ledger.view(build_id).jobs)
    age(ledger)
    lately = ledger.submit(source=ledger.upload(3))
    talkative(ledger)
    kept = KeptHistory(logs_days=90, samples_days=90, events_days=90)
    told = history.forget(ledger.db, kept, dry_run=True)
    done = history.forget(ledger.db, kept)
    assert told == done
    assert (done.logs, done.samples, done.builds, done.jobs) == (ran, ran, 0, 0)
    assert done.events >= 3 * ran
    assert rows(ledger, JobLog) == rows(ledger, JobSampleRow) == len(ledger.view(lately).jobs)
    with ledger.db.read() as session:
        assert logs.log(session, build_id, None) == ""
        assert logs.log(session, lately, None).count("hello") == len(ledger.view(lately).jobs)
        assert [one.kind for one in events.history(session, build_id, 0, 2**62)] == ["build"] * 3
        assert events.end(session, build_id) is not None
    assert ledger.view(build_id).state == "succeeded"


def test_what_a_running_job_has_told_stays_however_long_it_runs(ledger: Ledger) -> None:
    ledger.submit()
    claim = ledger.claim_next()
    with ledger.db.write() as session:
        jobs.report(session, claim.job_id, claim.attempt, phase="works", text="hello\n")
        samples.keep(session, claim.job_id, claim.attempt, began_at=now(), series={"at_s": [1.0]})
    age(ledger)
    assert history.forget(ledger.db, ALL) == HistoryReport()


@pytest.mark.parametrize("at", [0, 1, 7, 19, 20])
def test_the_first_event_from_a_time_on_is_found_among_gaps(db: Database, at: int) -> None:
    since = now() - timedelta(days=1)
    with db.write() as session:
        for n in range(20):
            moment = since + timedelta(minutes=n - at)
            session.add(Event(id=3 * n + 5, kind="job", data={}, at=moment))
    with db.read() as session:
        found = keeping.boundary(session, since)
        later = session.scalars(select(Event.id).where(Event.id >= found)).all()
    assert len(later) == 20 - at


def test_a_farm_without_events_has_none_to_forget(db: Database) -> None:
    assert history.forget(db, ALL) == HistoryReport()


def test_each_unit_of_work_takes_a_few_rows(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "BATCH", 2)
    for _ in range(5):
        failed(ledger)
    talkative(ledger)
    age(ledger)
    taken: list[int] = []
    for name in ("builds", "jobs", "logs", "events", "samples"):
        monkeypatch.setattr(keeping, name, _noting(getattr(keeping, name), taken))
    told = history.forget(ledger.db, ALL, dry_run=True)
    done = history.forget(ledger.db, ALL)
    assert (done.builds, done.jobs) == (told.builds, told.jobs) == (4, 4 * len(_jobs(ledger)))
    assert max(taken) == 2
    assert len(taken) > (done.builds + done.jobs) / 2


def _noting(delete: Any, taken: list[int]) -> Any:
    def noted(*given: Any) -> Any:
        done = delete(*given)
        taken.append(done[1] if isinstance(done, tuple) else done)
        return done

    return noted


def _jobs(ledger: Ledger) -> list[Any]:
    return list(ledger.view(ids(ledger)[-1]).jobs)


def test_a_job_that_a_submission_is_joining_stays(ledger: Ledger) -> None:
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer")
    failed(ledger)
    ledger.submit(source=ledger.upload(3), precisions=["fp32"])
    ledger.succeed(ledger.claim_next())
    [export] = [job.id for job in ledger.view(ids(ledger)[-1]).jobs if job.kind == "export"]
    ledger.cancel(ids(ledger)[-1])
    ledger.submit(source={"digest": f"sha256:{3:064x}", "format": "onnx"})
    ledger.cancel(ids(ledger)[-1])
    age(ledger)
    with ledger.db.write() as session:
        jobs.locked(session, [export])
        thread = threading.Thread(target=history.forget, args=(ledger.db, BUILDS))
        thread.start()
        thread.join(timeout=180)
        assert not thread.is_alive()  # it waits for nobody
        assert session.scalar(select(Job.id).where(Job.id == export)) == export


def test_a_round_of_the_keeper_forgets_and_the_audit_says_so(ledger: Ledger, tmp_path: Any) -> None:
    failed(ledger)
    failed(ledger)
    age(ledger)
    settings = Settings(keep_builds_days=90, unused_after_s=0)
    store = LocalStore(tmp_path / "store")
    Keeper(ledger.db, store, Pulled(ledger.db), settings).round()
    assert len(ids(ledger)) == 1
    with ledger.db.read() as session:
        [row] = session.scalars(select(AuditRow).where(AuditRow.action == "forget"))
    assert row.details is not None
    assert (row.who, row.details["builds"]) == ("the farm", 1)
    assert row.object.startswith("1 build, ")


def test_a_source_whose_builds_were_forgotten_is_built_again_when_it_is_asked_for(
    ledger: Ledger,
) -> None:
    source = {"digest": SOURCE, "format": "onnx"}
    failed(ledger, source=source)
    failed(ledger, source=source)
    age(ledger)
    assert history.forget(ledger.db, BUILDS).builds == 1
    again = ledger.submit(source=source)
    ledger.run_all()
    assert ledger.view(again).state == "succeeded"


def test_the_ages_reach_the_farms_other_processes() -> None:
    given = Settings(keep_builds_days=180, keep_logs_days=0.5)
    told = given.environment()
    assert (told["FARM_KEEP_BUILDS_DAYS"], told["FARM_KEEP_LOGS_DAYS"]) == ("180.0", "0.5")
    assert "FARM_KEEP_EVENTS_DAYS" not in told
