"""Which job comes next: by priority, then by the clients' turns, then by age."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import groupby

import pytest
from sqlalchemy import select

from farm.database.base import now
from farm.database.tables import Job
from farm.errors import Unavailable
from farm.queue import jobs, leases
from tests.ledger import Ledger


def submit(ledger: Ledger, numbers: range, client: str, **changes) -> None:
    for number in numbers:
        ledger.submit(
            client=client, model=f"{client}-{number}", source=ledger.upload(number), **changes
        )


def exports_in_line(ledger: Ledger) -> list[str]:
    """The models in the order in which one worker would export them."""
    order = []
    while (job := ledger.first_in_line()) is not None:
        claim = ledger.claim(job)
        assert claim is not None
        if claim.kind == "export":
            order.append(claim.title.removeprefix("export "))
        # Not finished: what follows from an export comes in its own turn.
    return order


def test_one_clients_hundred_builds_do_not_starve_anothers_one(ledger):
    submit(ledger, range(100), "many")
    submit(ledger, range(100, 101), "one")
    assert exports_in_line(ledger)[:3] == ["many-0", "one-100", "many-1"]


def test_clients_with_many_builds_take_turns(ledger):
    submit(ledger, range(10), "a")
    submit(ledger, range(10, 20), "b")
    runs = [len(list(run)) for _, run in groupby(exports_in_line(ledger), lambda name: name[0])]
    assert max(runs) <= 2


def test_who_comes_late_does_not_make_up_for_the_time_before(ledger):
    submit(ledger, range(10), "early")
    for _ in range(5):
        job = ledger.first_in_line()
        assert ledger.claim(job) is not None
    submit(ledger, range(10, 20), "late")
    runs = [len(list(run)) for _, run in groupby(exports_in_line(ledger), lambda name: name[0])]
    assert max(runs[:8]) <= 2


def test_a_higher_priority_comes_first_and_within_one_the_older(ledger):
    submit(ledger, range(3), "a", priority=2)
    submit(ledger, range(3, 5), "a", priority=7)
    assert exports_in_line(ledger) == ["a-3", "a-4", "a-0", "a-1", "a-2"]


def test_a_build_of_higher_priority_takes_the_jobs_along_that_it_joins(ledger):
    submit(ledger, range(3), "a", priority=2)
    ledger.submit(
        client="b",
        model="urgent",
        source={"digest": f"sha256:{2:064x}", "format": "onnx"},
        priority=9,
    )
    assert ledger.first_in_line().title == "export a-2"
    # Its message is sent again, among the urgent ones.
    assert ("export a-2", 9) in [(bell.title, bell.priority) for bell in ledger.ready]


def test_turns_are_counted_in_each_queue(ledger):
    """A client whose builds wait for a slow GPU doesn't keep another's first one from that GPU."""
    gpu = "tensorrt.sm_90"
    ledger.worker("gpu@h200", queues=(gpu,), tags=("sm_90",))
    submit(ledger, range(20), "many", targets=["sm_90"])
    while (job := ledger.first_in_line()) is not None:  # the CPU's work is all done, and long ago
        ledger.succeed(ledger.claim(job))
    assert ledger.claim(ledger.first_in_line(gpu)).title.startswith("build many-0")
    submit(ledger, range(20, 21), "one", targets=["sm_90"])
    while (job := ledger.first_in_line()) is not None:
        ledger.succeed(ledger.claim(job))
    claimed = [ledger.claim(ledger.first_in_line(gpu)).title for _ in range(3)]
    assert [title.split(":")[0] for title in claimed] == [
        "build many-1",
        "build one-20",
        "build many-2",
    ]


def test_what_is_all_there_already_takes_no_turn(ledger):
    ledger.submit(client="a")
    ledger.run_all()
    ledger.submit(client="b")
    with ledger.db.read() as session:
        assert set(session.scalars(select(Job.client))) == {"a"}


def test_an_interrupted_job_is_left_alone_for_a_while_and_the_others_come_first(ledger):
    submit(ledger, range(2), "a")
    first = ledger.first_in_line()
    waits = []
    for _ in range(3):
        claim = ledger.claim(first)
        with ledger.db.write() as session:
            leases.interrupt(
                session,
                claim.job_id,
                claim.attempt,
                Unavailable("the store is away"),
                max_attempts=5,
                wait_s=(15, 50),
            )
            first = session.get_one(Job, first.id, populate_existing=True)
            assert first.phase == "interrupted: the store is away"
            waits.append((first.not_before - now()).total_seconds())
    assert waits == [pytest.approx(wait_s, abs=1) for wait_s in (15, 50, 50)]
    assert ledger.first_in_line().title == "export a-1"
    with ledger.db.write() as session:
        session.get_one(Job, first.id).not_before = now()
    assert ledger.first_in_line().id == first.id
    with ledger.db.write() as session:  # the clock was put back meanwhile
        session.get_one(Job, first.id).not_before = now() + timedelta(days=1)
    assert ledger.first_in_line().id == first.id
    assert ledger.claim(ledger.first_in_line())
    assert ledger.reload(first).phase is None


def claim_first(session, job, owner="cpu@here"):
    return jobs.claim_first(session, job.id, owner=owner, lease_s=30, longest_s=60)


def test_a_message_makes_its_worker_claim_the_first_in_line_whichever_job_it_names(ledger):
    submit(ledger, range(2), "a")
    first, second = ledger.queued()
    for expected in (first, second):
        with ledger.db.write() as session:
            claim = claim_first(session, second)
        assert (claim.job_id, claim.attempt) == (expected.id, 1)
        assert ledger.reload(expected).owner == "cpu@here"
    with ledger.db.write() as session:
        assert claim_first(session, second) is None, "a message too many claims nothing"


def test_two_workers_that_claim_at_once_get_two_jobs_and_neither_waits(ledger):
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer")
    submit(ledger, range(2), "a")
    bell = ledger.queued()[0]
    with ledger.db.write() as one, ledger.db.write() as other:
        claims = [claim_first(one, bell), claim_first(other, bell, owner="cpu@there")]
    assert [claim.title for claim in claims] == ["export a-0", "export a-1"]


def test_of_two_workers_that_claim_the_only_job_at_once_one_gets_it(ledger):
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer")
    ledger.submit()
    bell = ledger.queued()[0]
    found = []

    def claim():
        with ledger.db.write() as session:
            found.append(claim_first(session, bell, owner="cpu@there"))

    with ledger.db.write() as session:
        assert claim_first(session, bell).job_id == bell.id
        worker = threading.Thread(target=claim)
        worker.start()
    worker.join(120)
    assert found == [None]
    assert ledger.reload(bell).owner == "cpu@here"
