"""The clients and the workers: threads of a few processes, on the farm's own code.

A client uploads a new version's source (its row alone), submits a build of it, and a second client submits
the same at once: the second build joins the first one's jobs. The messages are sent after the commit.

A worker waits for a message in the broker, claims the first in line, renews its lease, reports a phase and a
log, keeps samples, and finishes with what a fake stage reports; then it rings for the jobs that this
released. It is registered and says every few seconds that it is alive. What it leaves out is the child
process and the store.
"""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery
from kombu import Queue as BrokerQueue
from kombu.message import Message
from sqlalchemy.orm import Session

from bench.scale.controls import SPAWN, Controls, Pace, add
from farm.builds import submit
from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Artifact
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.fleet import workers
from farm.fleet.workers import Announcement, Fleet
from farm.processes import die_with_parent
from farm.queue import jobs, leases, samples
from farm.queue.celery_app import create_celery
from farm.queue.doorbell import Doorbell
from farm.queue.jobs import Claim, Output
from farm.queue.turns import Bell
from farm.schemas.submission import BuildRequest
from farm.settings import Settings
from farm.specs.states import Reuse
from farm.stages import JobKind
from farm.testing import documents
from farm.testing.stages import FakeStages
from workers.runner.waits import LOCKED_S, doubling

T = TypeVar("T")

QUEUES = ("cpu", "tensorrt-rtx.cpu")
MODELS = 200
_ALIVE_S = 10.0
_LOG = "a line of a job's log, as long as such lines are in the mean of them\n" * 30
_TOOLS = {"torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1", "tensorrt-rtx": "1.7.1"}


@dataclass(frozen=True, kw_only=True)
class Threads:
    """So many threads in so many processes."""

    threads: int
    processes: int

    @property
    def each(self) -> int:
        return -(-self.threads // self.processes)


def started(settings: Settings, controls: Controls, clients: Threads, crew: Threads) -> list[Any]:
    """Start the processes; they end with this one, or when they are told to."""
    made: list[BaseProcess] = []
    for number in range(crew.processes):
        first = number * crew.each
        names = [f"sim-{n:03}@bench" for n in range(first, min(first + crew.each, crew.threads))]
        made.append(SPAWN.Process(target=_work, args=(settings.environment(), controls, names)))
    for _ in range(clients.processes):
        given = (settings.environment(), controls, clients)
        made.append(SPAWN.Process(target=_submit, args=given))
    for process in made:
        process.start()
    return made


class _Process:
    """What a process's threads share."""

    def __init__(self, environment: Mapping[str, str], controls: Controls, threads: int) -> None:
        die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(environment)
        self.settings = Settings()
        self.controls = controls
        self.db = Database(self.settings.database, pool_size=threads)
        self.celery: Celery = create_celery(self.settings)
        self.doorbell = Doorbell(self.db, self.celery)

    def run(self, targets: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=self._guarded, args=(one,)) for one in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def insist(self, work: Callable[[Session], T], db: Database | None = None) -> T:
        """Do a unit of work, and again if the database broke it off, as a worker does."""
        while True:
            try:
                with (db or self.db).write() as session:
                    return work(session)
            except DatabaseUnavailable as err:
                add(self.controls.broken, 1)
                if self.controls.stopped.wait(0.2):
                    raise SystemExit from err

    def _guarded(self, target: Callable[[], None]) -> None:
        while not self.controls.stopped.is_set():
            try:
                target()
            except Exception:
                if self.controls.stopped.is_set():
                    return
                add(self.controls.failures, 1)
                traceback.print_exc()


def _submit(environment: Mapping[str, str], controls: Controls, clients: Threads) -> None:
    process = _Process(environment, controls, clients.each)
    pace = Pace(controls, clients.processes)
    fleet = _KnownFleet(process)
    add(controls.ready, clients.each)
    process.run([_Client(process, pace, fleet).run] * clients.each)


class _KnownFleet:
    """The workers, remembered for half a second, as the API does."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._known: tuple[float, Fleet] | None = None

    def get(self) -> Fleet:
        known, at_s = self._known, time.monotonic()
        if known is None or at_s - known[0] > 0.5:
            with self._process.db.read() as session:
                fleet = Fleet.load(session, ttl_s=self._process.settings.worker_ttl_s)
            known = self._known = (at_s, fleet)
        return known[1]


class _Client:
    def __init__(self, process: _Process, pace: Pace, fleet: _KnownFleet) -> None:
        self._process = process
        self._pace = pace
        self._fleet = fleet

    def run(self) -> None:
        while not self._process.controls.stopped.is_set():
            number = self._pace.turn()
            if number is None:
                time.sleep(0.01)
                continue
            try:
                self._pair(number)
            finally:
                add(self._process.controls.done, 1)

    def _pair(self, number: int) -> None:
        digest = _digest("source", number)
        upload = Artifact(digest=digest, bytes=25_000_000)
        self._process.insist(lambda session: session.merge(upload))
        request = BuildRequest.model_validate(_request(number, digest))
        for client in ("key:one", "key:two"):
            self._build(request, client)

    def _build(self, request: BuildRequest, client: str) -> None:
        terms = submit.Terms(fleet=self._fleet.get(), runtimes=self._process.settings.runtimes)
        made = self._process.insist(
            lambda session: submit.submit_build(session, request, terms, client=client)
        )
        assert made.attached is not None
        reuse = Counter(how for _, how in made.attached.jobs)
        controls = self._process.controls
        add(controls.ran, reuse[Reuse.RAN])
        add(controls.joined, reuse[Reuse.JOINED])
        add(controls.cached, reuse[Reuse.CACHED])
        self._process.doorbell.ring(made.ready)


def _request(number: int, digest: str) -> dict[str, Any]:
    """A build of a new version: an export, a build and a measurement."""
    return {
        "model": f"model-{number % MODELS}",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp32"],
        "targets": ["tensorrt-rtx:sm_89"],
        "profiles": [{"x": {"min": [1], "opt": [1], "max": [64]}}],
    }


def _work(environment: Mapping[str, str], controls: Controls, names: list[str]) -> None:
    process = _Process(environment, controls, len(names))
    facts = _facts()
    crew = [_Worker(process, name, facts) for name in names]
    add(controls.ready, len(names))
    process.run([worker.run for worker in crew])


class _Worker:
    def __init__(
        self, process: _Process, name: str, facts: Mapping[JobKind, tuple[tuple[str, ...], Any]]
    ) -> None:
        self._process = process
        self._name = name
        self._facts = facts
        # As a real one: a lock that one thread holds while it waits for the interpreter is its own.
        self._db = Database(process.settings.database, pool_size=2)
        self._alive_s = time.monotonic()
        one = Announcement(
            name=name,
            host="bench",
            gpu=None,
            gpu_uuid=None,
            tags=("cpu",),
            queues=QUEUES,
            runtimes={},
            toolchain=_TOOLS,
        )
        self._insist(lambda session: workers.announce(session, one))

    def _insist(self, work: Callable[[Session], T]) -> T:
        return self._process.insist(work, self._db)

    def run(self) -> None:
        queues = [BrokerQueue(name, routing_key=name) for name in QUEUES]
        with self._process.celery.connection_for_read() as connection:
            consumer = connection.Consumer(queues, no_ack=True, on_message=self._hear)
            with consumer:
                while not self._process.controls.stopped.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=1)
                    self._say_alive()

    def _hear(self, message: Message) -> None:
        (job_id, _attempt), *_ = message.decode()
        for bell in self._run(job_id):
            self._process.doorbell.ring([bell])

    def _run(self, job_id: int) -> list[Bell]:
        settings, insist = self._process.settings, self._insist
        lease_s, longest_s = settings.lease_ttl_s, settings.retry_longest_s
        look = partial(
            jobs.claim_first,
            job_id=job_id,
            owner=self._name,
            lease_s=lease_s,
            longest_s=longest_s,
        )
        claim, waits = insist(look), doubling(*LOCKED_S)
        while claim is None and insist(lambda s: jobs.is_in_line(s, job_id, longest_s=longest_s)):
            time.sleep(next(waits))  # as `workers.runner.claims` does
            claim = insist(look)
        if claim is None:
            return []
        of, began_at = (claim.job_id, claim.attempt), now()
        half_s = self._process.controls.hold_s.value / 2
        try:
            time.sleep(half_s)
            insist(lambda session: leases.renew(session, *of, lease_s=lease_s))
            time.sleep(half_s)
            insist(lambda session: _told(session, claim, began_at))
            ready = insist(lambda session: self._finished(session, claim))
        except LeaseLost:  # the machine was too slow for it; another worker has the job
            add(self._process.controls.lost, 1)
            return []
        add(self._process.controls.finished, 1)
        return ready

    def _finished(self, session: Session, claim: Claim) -> list[Bell]:
        roles, facts = self._facts[JobKind(claim.kind)]
        outputs = {
            role: Output(digest=_digest(role, claim.job_id), bytes=1_000_000) for role in roles
        }
        return jobs.succeed(session, claim.job_id, claim.attempt, outputs=outputs, facts=facts)

    def _say_alive(self) -> None:
        if time.monotonic() - self._alive_s > _ALIVE_S:
            self._alive_s = time.monotonic()
            self._insist(lambda session: workers.seen(session, self._name))


def _told(session: Session, claim: Claim, began_at: datetime) -> None:
    """Keep what a job tells of itself while it runs."""
    of = (claim.job_id, claim.attempt)
    jobs.report(session, *of, phase="works", progress=0.5, text=_LOG)
    samples.keep(session, *of, began_at=began_at, series=_SERIES)


#: What a job of ten seconds leaves.
_SERIES: dict[str, list[float | None]] = {
    name: [float(n) for n in range(20)] for name in ("at_s", "cpus", "memory_bytes")
}


def _facts() -> dict[JobKind, tuple[tuple[str, ...], Any]]:
    """What a fake stage of each kind makes: the roles, and the facts."""
    accuracy = documents.engine(b"")["accuracy"]
    stages = FakeStages(facts={JobKind.MEASURE: {"accuracy": accuracy}})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in (JobKind.EXPORT, JobKind.BUILD, JobKind.MEASURE):
            made = stages.run(kind, Path(folder))
            found[kind] = (tuple(map(str, made.outputs)), dict(made.facts))
    return found


def _digest(what: str, number: int) -> str:
    return f"sha256:{hashlib.sha256(f'{what} {number}'.encode()).hexdigest()}"
