"""The doorbell on a real broker: a message for each queued job, and no more."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from farm.database.base import now
from farm.database.tables import Job
from farm.errors import BrokerUnavailable
from farm.local import up
from farm.queue.celery_app import create_celery
from farm.queue.doorbell import Doorbell, _messages
from farm.queue.turns import Bell
from tests.e2e.conftest import fresh_settings

AGAIN_S = 60.0


@pytest.fixture
def site(tmp_path):
    """A broker, and the settings with which it is reached."""
    with fresh_settings(tmp_path) as settings:
        farm = up.LocalFarm(settings)
        farm.start(parts=())
        yield farm, settings
        farm.stop()


class Bench:
    """A ledger with a doorbell."""

    def __init__(self, ledger, settings):
        self.ledger = ledger
        self.celery = create_celery(settings)
        self.doorbell = Doorbell(ledger.db, self.celery)

    def ring(self):
        self.doorbell.ring(list(map(Bell.of, self.ledger.queued())))

    def sweep(self):
        self.doorbell.ring_pending(again_s=AGAIN_S, longest_wait_s=AGAIN_S)

    def messages(self, queue="cpu"):
        with self.celery.connection_for_read() as connection:
            return _messages(connection, queue)

    def rung(self, ago_s):
        at = None if ago_s is None else now() - timedelta(seconds=ago_s)
        with self.ledger.db.write() as session:
            session.execute(update(Job).where(Job.state == "queued").values(rung_at=at))

    def rung_ago_s(self):
        with self.ledger.db.read() as session:
            times = session.scalars(select(Job.rung_at).where(Job.state == "queued")).all()
        return [(now() - at).total_seconds() for at in times]

    def flush(self):
        with self.celery.connection_for_write() as connection:
            connection.default_channel.client.flushdb()


@pytest.fixture
def bench(ledger, site):
    for number in range(5):
        ledger.submit(model=f"m{number}", source=ledger.upload(number))
    made = Bench(ledger, site[1])
    yield made
    made.celery.close()


def test_what_was_never_announced_is(bench):
    bench.rung(None)
    bench.sweep()
    assert bench.messages() == 5
    bench.sweep()
    assert bench.messages() == 5


def test_messages_of_jobs_that_wait_long_do_not_pile_up(bench):
    bench.ring()
    for _ in range(3):
        bench.rung(AGAIN_S + 1)
        bench.sweep()
        assert max(bench.rung_ago_s()) < AGAIN_S  # not looked at again for a while
    assert bench.messages() == 5


def test_as_many_messages_as_were_lost_are_sent_again(bench):
    bench.ring()
    with bench.celery.connection_for_read() as connection:
        for _ in range(2):
            connection.default_channel.basic_get("cpu", no_ack=True)
    bench.rung(AGAIN_S + 1)
    bench.sweep()
    assert bench.messages() == 5


def test_what_a_flushed_broker_lost_is_sent_again_when_it_was_announced_long_ago(bench):
    bench.ring()
    bench.flush()
    bench.rung(AGAIN_S - 10)
    bench.sweep()
    assert bench.messages() == 0
    bench.rung(AGAIN_S + 1)
    bench.sweep()
    assert bench.messages() == 5


def test_what_was_announced_before_the_clock_was_put_back_is_not_forgotten(bench):
    bench.rung(-86_400)
    bench.sweep()
    assert bench.messages() == 5


def test_a_broker_that_is_away_costs_nothing_and_is_not_waited_for(bench, site, monkeypatch):
    farm, settings = site

    def waited(_seconds):
        raise AssertionError("it waits for the broker")

    if settings.broker_url:
        pytest.skip("the broker is shared")
    bench.rung(None)
    farm.stop()
    monkeypatch.setattr("kombu.utils.functional.sleep", waited)
    with pytest.raises(BrokerUnavailable):
        bench.sweep()
    with bench.ledger.db.read() as session:
        assert set(session.scalars(select(Job.rung_at).where(Job.state == "queued"))) == {None}


def test_a_message_carries_the_trace_of_its_job(bench):
    context = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with bench.ledger.db.write() as session:
        session.execute(update(Job).where(Job.state == "queued").values(trace=context))
    bench.rung(None)
    bench.sweep()
    with bench.celery.connection_for_read() as connection:
        message = connection.default_channel.basic_get("cpu", no_ack=True)
    assert {name: message.headers.get(name) for name in context} == context
