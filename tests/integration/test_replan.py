"""Workers are upgraded while builds wait: jobs planned for other tools are replanned."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from farm.builds import events
from farm.daemon.replan import replan_outdated
from farm.database.tables import Artifact, Job
from farm.errors import LeaseLost
from farm.fleet import workers
from farm.queue import leases
from tests.ledger import TOOLCHAIN

NEWER = TOOLCHAIN | {"torch": "2.14.0"}
CAUSE = "planned with another toolchain: torch 2.13.0 → 2.14.0"


def refuse(ledger, claim):
    """What a worker does that has other tools than a job was planned with, and then the daemon."""
    with ledger.db.write() as session:
        leases.leave(session, claim.job_id, claim.attempt, CAUSE)
    return replan_outdated(ledger.db, ttl_s=60)


def test_a_build_is_planned_anew_with_the_tools_that_are_there_and_never_fails(ledger):
    first, second = ledger.submit(), ledger.submit()
    old = {job.key for job in ledger.queued()}
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    bells = refuse(ledger, ledger.claim_next(owner="cpu@upgraded"))
    queued = ledger.queued()
    assert [job.recipe["tools"]["torch"] for job in queued] == ["2.14.0"]
    assert {bell.key for bell in bells} == {job.key for job in queued}
    assert old.isdisjoint(job.key for job in queued)
    ledger.run_all()
    for build in (first, second):
        assert ledger.view(build).state == "succeeded"
        with ledger.db.read() as session:
            happened = events.since(session, build)
        states = [event.state for event in happened if event.kind == "build"]
        assert "failed" not in states
        assert CAUSE in [event.data.get("cause") for event in happened]


def test_the_old_jobs_are_cancelled_and_what_is_there_already_is_kept(ledger):
    build = ledger.submit()
    ledger.succeed(ledger.claim_next())  # the export; torch isn't a tool of what comes next
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    before = [job.id for job in ledger.queued()]
    claim = ledger.claim_next(owner="cpu@upgraded")
    refuse(ledger, claim)
    ledger.run_all()
    view = ledger.view(build)
    assert view.state == "succeeded"
    assert {job.title: job.reuse for job in view.jobs}["export digits"] == "ran"
    with ledger.db.read() as session:
        states = dict(session.execute(select(Job.id, Job.state)).tuples().all())
        assert not session.scalars(select(Job.id).where(Job.lease_until.is_not(None))).all()
    assert states[claim.job_id] == "cancelled"
    assert {states[job_id] for job_id in before} <= {"cancelled", "succeeded"}


def test_builds_keep_their_places_in_line(ledger):
    for number in range(3):
        ledger.submit(model=f"m{number}", source=ledger.upload(number), client="a")
    ledger.submit(model="late", source=ledger.upload(3), client="b")
    before = [job.title for job in in_line(ledger)]
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    refused = len(before)
    for _ in range(refused):
        refuse(ledger, ledger.claim(in_line(ledger)[0], owner="cpu@upgraded"))
    assert [job.title for job in in_line(ledger)] == before
    assert {job.recipe["tools"]["torch"] for job in ledger.queued()} == {"2.14.0"}


def in_line(ledger):
    return sorted(
        ledger.queued(), key=lambda job: (job.recipe["tools"]["torch"], job.place, job.id)
    )


def test_a_worker_that_lags_behind_leaves_the_job_to_others_and_that_is_no_attempt(ledger):
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    build = ledger.submit()
    for _ in range(5):
        claim = ledger.claim_next()
        assert refuse(ledger, claim) == []
        with ledger.db.read() as session:
            job = session.get_one(Job, claim.job_id)
        assert (job.state, job.phase) == ("queued", CAUSE)
        assert job.not_before is not None
    ledger.reap(max_attempts=1)
    ledger.run_all()
    assert ledger.view(build).state == "succeeded"


def test_who_lost_its_lease_plans_nothing_anew(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    with ledger.db.write() as session:
        session.get_one(Job, claim.job_id).attempt += 1
    with pytest.raises(LeaseLost):
        refuse(ledger, claim)


def test_a_job_that_nobody_wants_any_more_ends(ledger):
    build = ledger.submit()
    claim = ledger.claim_next()
    ledger.cancel(build)
    refuse(ledger, claim)
    assert set(ledger.states(build).values()) == {"cancelled"}


def test_a_build_keeps_its_targets_while_workers_are_away_that_serve_them(ledger):
    ledger.worker("gpu@here", queues=("tensorrt.sm_89", "tensorrt.rtx-4090"))
    build = ledger.submit(targets=["rtx-4090"])
    [before] = {want.target for want in ledger.view(build).engines}
    assert before.startswith("tensorrt:")
    with ledger.db.write() as session:
        workers.left(session, "gpu@here")
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    refuse(ledger, ledger.claim_next(owner="cpu@upgraded"))
    assert {want.target for want in ledger.view(build).engines} == {before}
    assert {job.recipe["tools"]["torch"] for job in ledger.queued()} == {"2.14.0"}


def test_a_build_that_cannot_be_planned_anew_fails_with_the_reason(ledger):
    build = ledger.submit()
    claim = ledger.claim_next()
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    with ledger.db.write() as session:
        for artifact in session.scalars(select(Artifact)):
            artifact.lost_at = artifact.created_at
    refuse(ledger, claim)
    view = ledger.view(build)
    assert view.state == "failed"
    assert "isn't here" in view.error.detail


def test_a_job_that_another_worker_has_taken_is_not_planned_anew(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    with ledger.db.write() as session:
        leases.leave(session, claim.job_id, claim.attempt, CAUSE)
        session.get_one(Job, claim.job_id).not_before = None
    again = ledger.claim_next()
    assert again.job_id == claim.job_id
    ledger.worker("cpu@upgraded", toolchain=NEWER)
    assert replan_outdated(ledger.db, ttl_s=60) == []
    with ledger.db.read() as session:
        assert session.get_one(Job, claim.job_id).outdated is None
