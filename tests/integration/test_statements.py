"""What a job costs the database: on Postgres each statement is a round trip."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from farm.database import noted
from farm.database.session import Database
from farm.database.tables import Event, Model
from farm.queue import jobs
from farm.queue.jobs import Claim
from tests.ledger import Ledger
from tests.statements import counted, of_work

SHAPES = {"profiles": [{"x": {"min": [1], "opt": [1], "max": [2]}}]}


def claim_and_end(ledger: Ledger) -> tuple[Claim, int, int]:
    """Run the next job; return its claim, and the statements of the claim and of the end."""
    job = ledger.queued()[0]
    with counted(ledger.db.engine) as claiming, ledger.db.write() as session:
        claim = jobs.claim_first(session, job.id, owner="cpu@here", lease_s=30, longest_s=60)
    assert claim is not None
    with counted(ledger.db.engine) as ending:
        ledger.succeed(claim)
    return claim, len(of_work(claiming)), len(of_work(ending))


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ({}, {"export": (5, 12), "build": (5, 9), "measure": (5, 12)}),
        # What is known of the version's inputs already is compared with nothing.
        (SHAPES, {"export": (5, 8), "build": (5, 9), "measure": (5, 12)}),
    ],
    ids=["of a new version", "of one whose inputs are known"],
)
def test_each_job_takes_few_statements(
    ledger: Ledger, profiles: dict[str, Any], expected: dict[str, tuple[int, int]]
) -> None:
    asked: dict[str, Any] = {"precisions": ["fp32"], "targets": ["tensorrt-rtx:sm_89"]}
    if profiles:
        ledger.submit(**asked)
        ledger.run_all()
    ledger.submit(**asked, **profiles)
    seen = {}
    while ledger.queued():
        claim, claiming, ending = claim_and_end(ledger)
        seen[claim.kind] = (claiming, ending)
    # A higher number has to be worth a round trip of every job.
    assert seen == expected


def test_a_submission_of_new_work_writes_its_events_at_once_and_reads_no_results(
    ledger: Ledger,
) -> None:
    with counted(ledger.db.engine) as statements:
        build_id = ledger.submit()
    asked = of_work(statements)
    assert len([one for one in asked if one.startswith("INSERT INTO events")]) == 1
    # Nothing has finished that could tell of the version's inputs.
    assert not [one for one in asked if one.startswith("SELECT jobs.facts")]
    with ledger.db.read() as session:
        told = session.execute(select(Event.build_id, Event.job_id).order_by(Event.id)).all()
    jobs = sorted(job.id for job in ledger.view(build_id).jobs)
    assert [tuple(one) for one in told] == [(build_id, None), *((None, job) for job in jobs)]


def test_the_events_of_a_unit_of_work_take_one_statement_and_keep_their_order(
    ledger: Ledger,
) -> None:
    build_id = ledger.submit()
    with counted(ledger.db.engine) as statements, ledger.db.write() as session:
        for n in range(3):
            noted.note(session, build_id=build_id, kind="build", state="running", data={"n": n})
    assert len([one for one in statements if "events" in one]) == 1
    newest = select(Event.data).order_by(Event.id.desc()).limit(3)
    with ledger.db.read() as session:
        assert list(session.scalars(newest)) == [{"n": 2}, {"n": 1}, {"n": 0}]


def test_an_event_that_was_added_before_comes_before(ledger: Ledger) -> None:
    build_id = ledger.submit()
    with ledger.db.write() as session:
        session.add(Event(build_id=build_id, kind="build", data={"n": 0}))
        noted.note(session, build_id=build_id, kind="build", state="running", data={"n": 1})
    newest = select(Event.data).order_by(Event.id.desc()).limit(2)
    with ledger.db.read() as session:
        assert list(session.scalars(newest)) == [{"n": 1}, {"n": 0}]


def test_a_unit_of_work_that_fails_leaves_no_events(ledger: Ledger) -> None:
    build_id = ledger.submit()

    def fail() -> None:
        with ledger.db.write() as session:
            noted.note(session, build_id=build_id, kind="build", state="running", data={"n": 0})
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    with ledger.db.write() as session:
        assert {"n": 0} not in session.scalars(select(Event.data)).all()


def test_a_connection_that_the_server_has_ended_is_replaced_unnoticed(db: Database) -> None:
    if db.is_sqlite:
        pytest.skip("SQLite has no server")
    for _ in range(3):
        with db.read() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
        other = Database(db.url.render_as_string(hide_password=False))
        with other.read() as session:
            assert session.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        other.dispose()
        with db.write() as session:
            session.add(Model(name=f"after {pid}"))


def test_a_connection_that_worked_just_now_is_asked_nothing(db: Database) -> None:
    with db.read() as session:
        session.scalar(select(1))
    with counted(db.engine) as statements, db.read() as session:
        session.scalar(select(1))
    assert len(of_work(statements)) == 1
