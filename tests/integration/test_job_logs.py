"""What jobs print: kept apart from the events, told among them in order, and gone with them."""

from __future__ import annotations

import asyncio

import pytest
from alembic import command
from sqlalchemy import delete, event, select

from farm.api.streams import Streams
from farm.builds import events, logs
from farm.database import migrate
from farm.database.tables import Event, JobLog
from farm.queue import jobs
from farm.settings import Settings
from tests.integration.test_schema import run


def report(ledger, claim, **what):
    with ledger.db.write() as session:
        jobs.report(session, claim.job_id, claim.attempt, **what)


def log_of(ledger, build, job=None):
    with ledger.db.read() as session:
        return logs.log(session, build, job)


def read(ledger, build):
    with ledger.db.read() as session:
        return events.since(session, build)


@pytest.fixture
def printed(ledger):
    """A build whose first job prints between its phases."""
    build = ledger.submit()
    claim = ledger.claim_next()
    report(ledger, claim, phase="load", text="a secret of the log\n")
    report(ledger, claim, text="the second line\n")
    report(ledger, claim, phase="write", progress=0.5)
    report(ledger, claim, text="the last line\n")
    ledger.succeed(claim)
    return build


@pytest.fixture
def statements(ledger):
    """What the database is asked from here on."""
    asked: list[str] = []

    def note(_connection, _cursor, statement, *_more):
        asked.append(statement)

    event.listen(ledger.db.engine, "before_cursor_execute", note)
    yield asked
    event.remove(ledger.db.engine, "before_cursor_execute", note)


def test_the_events_hold_nothing_of_what_a_job_printed(ledger, printed):
    with ledger.db.read() as session:
        kept = session.scalars(select(Event.data).where(Event.kind == "log")).all()
        everything = "".join(map(str, session.scalars(select(Event.data))))
    assert kept == [{"attempt": 1}] * 3
    assert "line" not in everything
    assert "secret" not in everything


def test_a_log_is_what_was_printed_in_order(ledger, printed):
    lines = "a secret of the log\nthe second line\nthe last line\n"
    assert log_of(ledger, printed) == f"=== export digits\n{lines}"
    [first, *_] = ledger.jobs_of(printed)
    assert log_of(ledger, printed, first) == lines


def test_the_log_and_what_else_happens_are_told_in_their_order(ledger, printed):
    found = read(ledger, printed)
    of_job = [e for e in found if e.title == "export digits" and e.kind in ("phase", "log")]
    assert [(e.kind, e.data.get("phase") or e.data["text"]) for e in of_job] == [
        ("phase", "load"),
        ("log", "a secret of the log\n"),
        ("log", "the second line\n"),
        ("phase", "write"),
        ("log", "the last line\n"),
    ]
    assert [e.data["attempt"] for e in of_job if e.kind == "log"] == [1, 1, 1]
    assert [e.id for e in found] == sorted({e.id for e in found})


def test_a_stream_tells_the_log_as_it_comes(ledger, printed):
    ledger.cancel(printed)
    sent = []

    async def follow() -> None:
        async def send(message):
            sent.append(message.get("body", b""))

        async def receive():
            await asyncio.Event().wait()

        stream = await Streams(ledger.db).follow(printed, 0)
        await stream({}, receive, send)

    asyncio.run(follow())
    told = b"".join(sent).decode()
    places = [
        told.index(f'"text":"{line}\\n","attempt":1')
        for line in ("a secret of the log", "the second line", "the last line")
    ]
    assert places == sorted(places)


def test_texts_are_read_only_of_builds_that_somebody_follows(ledger, printed, statements):
    other = ledger.submit(model="other", source=ledger.upload(7))
    with ledger.db.read() as session:
        news = events.news(session, {other}, 0)
    assert not [one for one in statements if "job_logs" in one]
    assert not [one for one in news.events if one.kind == "log"]
    with ledger.db.read() as session:
        news = events.news(session, {printed, other}, 0)
    assert [one for one in statements if "job_logs" in one]
    assert len([one.data["text"] for one in news.events if one.kind == "log"]) == 3


def test_the_text_goes_with_its_event(ledger, printed):
    [first, *_] = ledger.jobs_of(printed)
    with ledger.db.write() as session:
        kept = session.scalars(
            select(Event.id).where(Event.job_id == first, Event.kind == "log").order_by(Event.id)
        ).all()[-1]
        session.execute(delete(Event).where(Event.job_id == first, Event.id != kept))
    with ledger.db.read() as session:
        assert session.scalars(select(JobLog.event_id)).all() == [kept]
    with ledger.db.write() as session:
        session.execute(delete(Event).where(Event.job_id == first))
    with ledger.db.read() as session:
        assert session.scalars(select(JobLog.event_id)).all() == []


def test_a_text_that_no_database_encodes_is_kept_readable(ledger):
    build = ledger.submit()
    report(ledger, ledger.claim_next(), text="a file \udcff\n")
    assert log_of(ledger, build) == "=== export digits\na file \\udcff\n"


def test_old_texts_move_out_of_the_events_and_back(ledger, printed, database_url):
    db = ledger.db
    before, log = [e.model_dump() for e in read(ledger, printed)], log_of(ledger, printed)
    run(db, command.downgrade, "0011")
    old = {e["id"]: e["data"] for e in before if e["kind"] == "log"}
    with db.read() as session:
        found = session.execute(select(Event.id, Event.data).where(Event.kind == "log"))
        assert dict(found.tuples().all()) == old
    assert migrate.upgrade(Settings(database_url=database_url)) == migrate.newest_schema()
    assert [e.model_dump() for e in read(ledger, printed)] == before
    assert log_of(ledger, printed) == log
    with db.read() as session:
        assert (
            session.scalars(select(Event.data).where(Event.kind == "log")).all()
            == [{"attempt": 1}] * 3
        )


def test_more_old_texts_than_are_held_at_once_move_whole(ledger, database_url):
    build = ledger.submit()
    claim = ledger.claim_next()
    run(ledger.db, command.downgrade, "0011")
    lines = [f"line {n} “ü”\n" for n in range(700)] + ["x" * 2**21] * 9 + ["a file \udcff\n"]
    if not ledger.db.is_sqlite:
        lines.pop()  # Postgres has refused it
    with ledger.db.write() as session:
        for line in lines:
            # As it was written then, between other events.
            data = {"text": line, "attempt": 1}
            session.add(Event(job_id=claim.job_id, kind="log", data=data))
            session.add(Event(job_id=claim.job_id, kind="phase", data={"phase": "p"}))
    migrate.upgrade(Settings(database_url=database_url))
    assert log_of(ledger, build, claim.job_id) == "".join(lines).replace("\udcff", "\\udcff")
    with ledger.db.read() as session:
        kept = session.scalars(select(Event.data).where(Event.kind == "log")).all()
    assert kept == [{"attempt": 1}] * len(lines)
