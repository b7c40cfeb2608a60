"""A job keeps its lease while its files are on their way."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select

from farm.database.tables import Job
from workers.runner.transfers import Transfers

LEASE_S = 0.6


@pytest.fixture
def transfers(ledger):
    return Transfers(ledger.db, lease_s=LEASE_S, stopping=threading.Event())


@pytest.fixture(autouse=True)
def others():
    """Threads of tests before."""
    return set(threading.enumerate())


@pytest.fixture
def claim(ledger):
    ledger.submit()
    return ledger.claim_next()


def until(ledger, claim):
    with ledger.db.read() as session:
        return session.scalar(select(Job.lease_until).where(Job.id == claim.job_id))


def is_renewed(ledger, claim, before):
    deadline = time.monotonic() + 180
    while until(ledger, claim) == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def watchers(others):
    return [one for one in threading.enumerate() if one.name == "leases" and one not in others]


def has_ended(others):
    deadline = time.monotonic() + 180
    while watchers(others):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def test_a_job_keeps_its_lease_until_its_files_have_arrived(ledger, claim, transfers, others):
    before = until(ledger, claim)
    with transfers.leased(claim):
        assert is_renewed(ledger, claim, before)
        assert is_renewed(ledger, claim, until(ledger, claim))
    assert has_ended(others)
    left = until(ledger, claim)
    with transfers.leased(claim):
        assert is_renewed(ledger, claim, left)
    assert has_ended(others)


def test_one_thread_keeps_all_leases_and_outlives_a_lost_one(ledger, claim, transfers, others):
    ledger.submit(source=ledger.upload(3))
    other = ledger.claim_next()
    with transfers.leased(claim), transfers.leased(other):
        ledger.succeed(claim)
        assert is_renewed(ledger, other, until(ledger, other))
        assert len(watchers(others)) == 1
    assert has_ended(others)


def test_one_thread_survives_what_nobody_foresaw(ledger, claim, transfers, others, monkeypatch):
    write, failures = ledger.db.write, iter([ZeroDivisionError("a bug")])

    def broken():
        for failure in failures:
            raise failure
        return write()

    monkeypatch.setattr(ledger.db, "write", broken)
    before = until(ledger, claim)
    with transfers.leased(claim):
        assert is_renewed(ledger, claim, before)
    assert has_ended(others)
