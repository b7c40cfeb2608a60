"""The stream of a build's events: in order, nothing twice, nothing left out, on both databases."""

from __future__ import annotations

import threading

import pytest

from farm.builds import events
from farm.queue import jobs


def log(session, job_id, text):
    jobs.report(session, job_id, 1, text=text)
    session.flush()


def read(ledger, build, after=0):
    with ledger.db.read() as session:
        return events.since(session, build, after)


def has_ended(ledger, build, after=10**9):
    with ledger.db.read() as session:
        return events.has_ended(session, build, after)


def texts(found):
    return [event.data["text"] for event in found if event.kind == "log"]


def test_a_reader_waits_for_what_is_committed_after_its_successor(ledger, monkeypatch):
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer: numbers are in the order of the commits")
    monkeypatch.setattr(events, "_PATIENCE_S", 120.0)
    build = ledger.submit()
    [job_id] = [job.id for job in ledger.queued()]
    got = []
    with ledger.db.write() as slow:
        log(slow, job_id, "first, and committed last")
        with ledger.db.write() as quick:
            log(quick, job_id, "second")
        reader = threading.Thread(target=lambda: got.extend(read(ledger, build)))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
    reader.join(120)
    assert texts(got) == ["first, and committed last", "second"]


def test_a_reader_that_waited_for_long_asks_again_later(ledger, monkeypatch):
    if ledger.db.is_sqlite:
        pytest.skip("SQLite has one writer: numbers are in the order of the commits")
    monkeypatch.setattr(events, "_PATIENCE_S", 0.1)
    build = ledger.submit()
    [job_id] = [job.id for job in ledger.queued()]
    with ledger.db.write() as slow:
        log(slow, job_id, "for long")
        assert read(ledger, build) == []
    assert texts(read(ledger, build)) == ["for long"]


def test_a_reader_goes_on_after_the_last_event_that_it_names(ledger):
    build = ledger.submit()
    ledger.run_all()
    everything = [event.id for event in read(ledger, build)]
    assert len(everything) > 5
    for number, last in enumerate(everything, 1):
        rest = [event.id for event in read(ledger, build, last)]
        assert everything[:number] + rest == everything


def test_a_build_has_ended_for_a_reader_who_has_read_so(ledger):
    build = ledger.submit()
    assert not has_ended(ledger, build)
    ledger.cancel(build)
    [*_, last] = [event for event in read(ledger, build) if event.kind == "build"]
    assert last.state == "cancelled"
    assert not has_ended(ledger, build, last.id - 1)
    assert has_ended(ledger, build, last.id)
    ledger.retry(build)
    assert not has_ended(ledger, build)
