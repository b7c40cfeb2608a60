"""A lease has expired when it was watched for its whole time and wasn't renewed, whatever clocks say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from farm.daemon.expiry import LeaseExpiry
from farm.queue.leases import Lease

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LEASE = Lease(job_id=1, attempt=1, until=NOON)


def silence() -> LeaseExpiry:
    return LeaseExpiry(longest_s=30, interval_s=2)


def watched(watch: LeaseExpiry, leases: list[Lease], seconds: range) -> list[tuple[int, int]]:
    """When which job's lease had expired, of a watch every two seconds."""
    return [(at, gone.job_id) for at in seconds[::2] for gone in watch.expired(leases, float(at))]


def test_a_lease_expires_when_it_was_not_renewed_for_its_time():
    assert watched(silence(), [LEASE], range(1000, 1034))[:1] == [(1032, 1)]


def test_a_lease_that_is_renewed_never_expires():
    watch = silence()
    for minute in range(60):
        renewed = Lease(job_id=1, attempt=1, until=NOON + timedelta(seconds=minute))
        assert not watched(watch, [renewed], range(minute * 20, minute * 20 + 20))


def test_the_times_that_are_written_in_leases_do_not_matter():
    long_ago = Lease(job_id=1, attempt=1, until=NOON - timedelta(days=365))
    ahead = Lease(job_id=2, attempt=1, until=NOON + timedelta(days=365))
    watch = silence()
    assert not watched(watch, [long_ago, ahead], range(30))
    assert watched(watch, [long_ago, ahead], range(30, 34)) == [(32, 1), (32, 2)]


def test_another_attempt_has_a_lease_of_its_own():
    watch = silence()
    assert not watched(watch, [LEASE], range(28))
    assert not watched(watch, [LEASE._replace(attempt=2)], range(28, 56))


def test_time_in_which_nobody_looked_does_not_count():
    watch = silence()
    assert not watched(watch, [LEASE], range(20))
    assert not watch.expired([LEASE], 10_000.0)
    assert watch.expired([LEASE], 10_002.0) == []
    assert watched(watch, [LEASE], range(10_004, 10_014))[:1] == [(10_010, 1)]


def test_after_the_database_was_away_every_lease_begins_anew():
    watch = silence()
    assert not watched(watch, [LEASE], range(30))
    watch.forget()
    assert not watched(watch, [LEASE], range(30, 60))
    assert watch.expired([LEASE], 62.0) == [LEASE]
