"""Whatever clients, workers and clocks do, in whatever order: the ledger's promises hold."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select

from farm.database.base import Base
from farm.database.tables import Build, BuildJob, EngineRow, Event, Job, JobInput, Wanted
from farm.errors import EngineBuildFailed, LeaseLost
from farm.queue import jobs, leases
from farm.specs.states import BUILD_ENDED, JOB_TRANSITIONS, LIVE, BuildState, JobState, build_state
from tests.ledger import DATA, Ledger

MAX_ATTEMPTS = 3
KEPT = {"artifacts", "workers", "alembic_version", "audit"}  #: the last is only ever added to
REQUESTS = [
    {},
    {"precisions": ["fp32", "fp16"]},
    {"targets": ["sm_86", "sm_89"]},
    {"precisions": ["int8"], "calibration": {"digest": DATA}},
    {"model": "the-same-by-another-name"},
]
pick = st.integers(min_value=0, max_value=2**16)


def machine(ledger: Ledger) -> type[RuleBasedStateMachine]:
    class Farm(RuleBasedStateMachine):
        """Clients and workers at work on one ledger."""

        def __init__(self) -> None:
            super().__init__()
            _wipe(ledger)
            self.builds: list[str] = []
            self.claims: list[jobs.Claim] = []

        @rule(which=st.sampled_from(range(len(REQUESTS))))
        def submit(self, which: int) -> None:
            self.builds.append(ledger.submit(**REQUESTS[which]))

        @rule(n=pick, owner=st.sampled_from(["cpu@here", "cpu@there"]))
        def claim(self, n: int, owner: str) -> None:
            queue = ledger.queued()
            if queue:
                job = queue[n % len(queue)]
                claim = ledger.claim(job, owner=owner)
                assert claim is not None
                assert ledger.claim(job, owner="a duplicate's") is None
                self.claims.append(claim)

        @rule(n=pick)
        def finish(self, n: int) -> None:
            """By whoever ever held it: also one who lost it long ago, or finished it before."""
            if self.claims:
                self._end(self.claims[n % len(self.claims)], ledger.succeed)

        @rule(n=pick)
        def fail(self, n: int) -> None:
            if self.claims:
                error = EngineBuildFailed("no tactic")
                self._end(self.claims[n % len(self.claims)], lambda c: ledger.fail(c, error))

        def _end(self, claim: jobs.Claim, how) -> None:
            with ledger.db.read() as session:
                job = session.get_one(Job, claim.job_id)
                held = job.state == JobState.RUNNING and job.attempt == claim.attempt
            if held:
                how(claim)
            else:
                with pytest.raises(LeaseLost):
                    how(claim)

        @rule(n=pick)
        def follow_a_cancelled_one(self, n: int) -> None:
            """As a worker that saw that it should end does."""
            if not self.claims:
                return
            claim = self.claims[n % len(self.claims)]
            with ledger.db.read() as session:
                job = session.get_one(Job, claim.job_id)
                held = job.state == JobState.RUNNING and job.attempt == claim.attempt
                held = held and job.cancel_requested
            if held:
                with ledger.db.write() as session:
                    jobs.end_cancelled(session, claim.job_id, claim.attempt)

        @rule(n=pick)
        def cancel(self, n: int) -> None:
            if self.builds:
                ledger.cancel(self.builds[n % len(self.builds)])

        @rule(n=pick)
        def retry(self, n: int) -> None:
            if self.builds:
                ledger.retry(self.builds[n % len(self.builds)])

        @rule()
        def workers_fall_silent(self) -> None:
            ledger.reap(max_attempts=MAX_ATTEMPTS)

        @rule(owner=st.sampled_from(["cpu@here", "cpu@there"]))
        def a_worker_shuts_down(self, owner: str) -> None:
            with ledger.db.write() as session:
                held = {claim.job_id: claim.attempt for claim in self.claims}
                leases.release(session, owner, held)

        @invariant()
        def the_promises_hold(self) -> None:
            _check(ledger)

        def teardown(self) -> None:
            """Once the workers do their work, every build ends."""
            self.workers_fall_silent()
            ledger.run_all(limit=1000)
            _check(ledger)
            with ledger.db.read() as session:
                assert not session.scalars(select(Job.title).where(Job.state.in_(LIVE))).all()
                states = set(session.scalars(select(Build.state)))
            assert states <= BUILD_ENDED

    return Farm


def _wipe(ledger: Ledger) -> None:
    with ledger.db.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in KEPT:
                session.execute(delete(table))


def _check(ledger: Ledger) -> None:
    with ledger.db.read() as session:
        all_jobs = {job.id: job for job in session.scalars(select(Job))}
        usable = Counter(
            j.key for j in all_jobs.values() if j.state in LIVE or j.state == JobState.SUCCEEDED
        )
        assert set(usable.values()) <= {1}, "single flight"
        for job in all_jobs.values():
            running = job.state == JobState.RUNNING
            assert (job.lease_until is not None) == running, job.title
            assert job.attempt - job.first_attempt < MAX_ATTEMPTS, job.title
            needs = session.scalars(select(JobInput.needs_id).where(JobInput.job_id == job.id))
            missing = {n for n in needs if all_jobs[n].state != JobState.SUCCEEDED}
            if job.state == JobState.WAITING:
                assert missing, f"{job.title} waits for nothing"
                assert all(all_jobs[n].state in LIVE for n in missing), f"{job.title} waits in vain"
            elif job.state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED):
                assert not missing, f"{job.title} was too early"
            _check_history(session, job)
        for build in session.scalars(select(Build)):
            _check_build(session, build)


def _check_history(session, job: Job) -> None:
    """The events tell every state that the job was in, each a step that is allowed."""
    told = [
        JobState(state)
        for state in session.scalars(
            select(Event.state)
            .where(Event.job_id == job.id, Event.kind == "job")
            .order_by(Event.id)
        )
    ]
    assert told[-1:] == [job.state], (job.title, told)
    assert told[0] in (JobState.WAITING, JobState.QUEUED)
    assert set(itertools.pairwise(told)) <= JOB_TRANSITIONS, told


def _check_build(session, build: Build) -> None:
    states = session.scalars(
        select(Job.state).join(BuildJob).where(BuildJob.build_id == build.id)
    ).all()
    if build.state != BuildState.CANCELLED:
        assert build.state == build_state(map(JobState, states))
    told = session.scalars(
        select(Event.state)
        .where(Event.build_id == build.id, Event.kind == "build")
        .order_by(Event.id)
    ).all()
    assert told[-1] == build.state
    for want in session.scalars(select(Wanted).where(Wanted.build_id == build.id)):
        made = {session.get_one(Job, i).state for i in (want.build_job_id, want.measure_job_id)}
        if want.engine_id is not None:
            assert made == {JobState.SUCCEEDED}
            engine = session.get_one(EngineRow, want.engine_id)
            assert engine.version_id == build.version_id
        elif build.state == BuildState.SUCCEEDED:
            raise AssertionError(f"{build.id} has succeeded without its {want.target}")


@pytest.mark.parametrize("examples", [8, pytest.param(25, marks=pytest.mark.heavy)])
def test_the_promises_hold_in_whatever_order_things_happen(examples: int, ledger: Ledger) -> None:
    run_state_machine_as_test(
        machine(ledger),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
