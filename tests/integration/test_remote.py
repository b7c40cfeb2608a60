"""What the broker's users may do to a worker: ring for a job, and look."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from celery import Celery
from celery.app.control import Inspect

from farm.api import readiness
from farm.database.tables import Job, Worker
from farm.fleet import workers
from farm.fleet.workers import Announcement, Fleet
from farm.queue.celery_app import TASK, create_celery
from farm.settings import Settings
from tests.integration.test_dispatch import site  # noqa: F401 a broker
from workers.runner import remote

QUEUES = ("cpu", "onnxruntime.cpu")
#: A worker with the farm's application and a task that does nothing.
WORKER = """
    import sys
    from farm.queue.celery_app import TASK, create_celery
    from farm.settings import Settings
    from workers.runner import remote

    app = create_celery(Settings())

    @app.task(name=TASK)
    def run(job_id, attempt):
        sys.stderr.write(f"ran {job_id}\\n")

    remote.close(app)
    app.worker_main("worker --pool=threads --concurrency=1 --without-mingle --without-gossip "
                    "--loglevel=INFO --hostname=w@test --queues=cpu,onnxruntime.cpu".split())
"""


@pytest.fixture
def worker(site, tmp_path):  # noqa: F811
    _, settings = site
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER)],
            env=_environment(settings),
            stdout=out,
            stderr=out,
        )
    app = create_celery(settings)
    _until(lambda: app.control.ping(["w@test"], timeout=10, limit=1), process, log)
    yield app, log
    process.terminate()
    process.wait(120)


def _inspect(app: Celery) -> Inspect:
    """Asks the worker, and is content with its answer, whenever that comes."""
    inspect = app.control.inspect(["w@test"], timeout=120)
    inspect.limit = 1
    return inspect


def _environment(settings: Settings) -> dict[str, str]:
    import os

    root = str(Path(__file__).resolve().parents[2])
    return os.environ | settings.environment() | {"PYTHONPATH": root}


def _until(condition, process, log: Path):
    deadline = time.monotonic() + 180
    while not (found := condition()):
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found


def test_flower_can_look_at_all_that_it_shows(worker):
    app, _ = worker
    inspect = _inspect(app)
    for name in remote.LOOKS:
        answer = getattr(inspect, name)()
        assert answer, name
        assert "error" not in (answer["w@test"] or {}), name
    assert {one["name"] for one in inspect.active_queues()["w@test"]} == set(QUEUES)
    assert inspect.registered()["w@test"] == [TASK]
    assert Settings().broker not in str(inspect.conf())


def test_nobody_can_make_it_do_anything_else(worker):
    app, log = worker
    calls = {
        "cancel_consumer": {"queue": "cpu"},
        "add_consumer": {"queue": "mine"},
        "shutdown": {},
        "pool_shrink": {"n": 1},
        "pool_grow": {"n": 9},
        "rate_limit": {"task_name": TASK, "rate_limit": "1/h"},
        "time_limit": {"task_name": TASK, "hard": 1},
        "revoke": {"task_id": "x", "terminate": True},
        "disable_events": {},
        "memdump": {},
    }
    for name, arguments in calls.items():
        app.control.broadcast(name, arguments=arguments, destination=["w@test"])
        _until(lambda n=name: f"KeyError('{n}')" in log.read_text(), None, log)
    app.send_task("celery.map", args=({"task": TASK}, [[1, 1]]), queue="cpu")
    _until(lambda: "celery.map" in log.read_text(), None, log)
    app.send_task(TASK, args=(7, 1), queue="cpu", ignore_result=True)
    _until(lambda: "ran 7" in log.read_text(), None, log)
    assert "ran 1\n" not in log.read_text()
    inspect = _inspect(app)
    assert {one["name"] for one in inspect.active_queues()["w@test"]} == set(QUEUES)


# Queues that nobody reads


class Consumer:
    """A consumer that reads some queues, as Celery's tells."""

    def __init__(self, *read: str) -> None:
        self.task_consumer = self
        self._read = read

    def consuming_from(self, queue: str) -> bool:
        return queue in self._read


def test_a_worker_tells_which_of_its_queues_it_doesnt_read():
    assert remote.unread(Consumer(*QUEUES), QUEUES) == []
    assert remote.unread(Consumer("cpu"), QUEUES) == ["onnxruntime.cpu"]
    assert remote.unread(None, QUEUES) == []
    away = Consumer()
    away.task_consumer = None
    assert remote.unread(away, QUEUES) == []


def test_celerys_own_consumer_tells_what_it_reads(site):  # noqa: F811
    _, settings = site
    app: Celery = create_celery(settings)
    with app.connection_for_read() as connection:
        app.amqp.queues.select(QUEUES)
        consumer = Consumer()
        consumer.task_consumer = app.amqp.TaskConsumer(connection.channel())
        assert remote.unread(consumer, QUEUES) == list(QUEUES)
        consumer.task_consumer.consume()
        assert remote.unread(consumer, QUEUES) == []
        consumer.task_consumer.cancel_by_queue("cpu")
        assert remote.unread(consumer, QUEUES) == ["cpu"]


def _worker(session, name: str, unread=()) -> None:
    workers.announce(
        session,
        Announcement(
            name=name,
            host=name,
            gpu=None,
            gpu_uuid=None,
            tags=("cpu",),
            queues=QUEUES,
            runtimes={},
            toolchain={},
        ),
    )
    session.flush()
    workers.seen(session, name, unread=unread)


def test_a_queue_that_an_online_worker_doesnt_read_is_told_until_one_reads_it(db):
    job = Job(state="queued", queue="cpu")
    with db.write() as session:
        _worker(session, "deaf", unread=["cpu"])
    with db.read() as session:
        found = Fleet.load(session, ttl_s=240)
        assert found.unread_queues == {"cpu": ["deaf"]}
        assert found.online_queues == {"onnxruntime.cpu": 1}
        assert "deaf, online without reading" in found.waits_for(job)
        [view] = workers.worker_views(session, found)
        assert view.unread == ["cpu"]
    said = readiness._queues(Settings(), db)
    assert said.startswith("workers are online without reading their queues: cpu (deaf)")
    with db.write() as session:
        _worker(session, "well")
    with db.read() as session:
        found = Fleet.load(session, ttl_s=240)
        assert found.unread_queues == {}
        assert found.waits_for(job) is None
    assert readiness._queues(Settings(), db) == readiness.OK
    with db.write() as session:
        workers.left(session, "well")
        workers.seen(session, "deaf")
    with db.read() as session:
        assert session.get(Worker, "deaf").unread == []
        assert Fleet.load(session, ttl_s=240).unread_queues == {}
