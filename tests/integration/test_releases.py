"""A job is queued once all its inputs are there, even if they end at the same moment."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text

from farm.database.session import Database
from farm.database.tables import Job, JobInput
from farm.queue import transitions
from farm.queue.turns import Bell
from tests.ledger import Ledger

pytestmark = pytest.mark.timeout(300)

_WAITS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def await_a_lock(db: Database) -> None:
    """Until a unit of work waits for another's rows. SQLite's wait for their turn as a whole."""
    while not db.is_sqlite:
        with db.read() as session:
            if session.scalar(_WAITS):
                return
        time.sleep(0.01)


def release(db: Database, job_id: int) -> list[Bell]:
    with db.write() as session:
        return transitions.release_dependents(session, job_id)


def test_of_two_inputs_that_end_at_once_the_second_queues_what_waits_for_both(
    ledger: Ledger,
) -> None:
    ledger.submit(model="one", source=ledger.upload(1))
    ledger.submit(model="two", source=ledger.upload(2))
    first, second = sorted(job.id for job in ledger.queued())
    with ledger.db.write() as session:
        needing = select(JobInput.job_id).where(JobInput.needs_id.in_([first, second]))
        waiting = sorted(set(session.scalars(needing)))
        for job in session.scalars(select(Job).where(Job.id.in_(waiting))):
            others = {first, second} - set(
                session.scalars(select(JobInput.needs_id).where(JobInput.job_id == job.id))
            )
            for number, other in enumerate(sorted(others)):
                role = f"more-{number}"
                session.add(JobInput(job_id=job.id, role=role, needs_id=other, output="onnx"))
            job.needs += len(others)
    with ThreadPoolExecutor(1) as thread:
        with ledger.db.write() as session:
            assert transitions.release_dependents(session, first) == []
            later = thread.submit(release, ledger.db, second)
            await_a_lock(ledger.db)
        assert [bell.id for bell in later.result()] == waiting
    with ledger.db.read() as session:
        found = session.execute(select(Job.state, Job.needs).where(Job.id.in_(waiting))).all()
    assert found == [("queued", 0)] * len(waiting)
    assert len(waiting) > 1
