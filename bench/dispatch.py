"""How fast a job starts, and how many go through a worker, over bare Celery's tasks.

All sides use one broker, the Valkey that ``farm up`` starts, and one worker each that works at
``FARM_CPU_SLOTS`` tasks at once (``bench.noop_worker`` says what these do).
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import httpx2
from sqlalchemy import ColumnElement, func, select

from bench import submissions
from bench.noop_worker import DEPENDENTS, FIRST, QUEUE, Peer, bare
from bench.processes import api_without_worker, fresh_database, kinds, module, wait_for
from bench.table import Row, row
from farm.database.session import Database
from farm.database.tables import Build, BuildJob, Job
from farm.settings import Settings
from farm.specs.states import JobState

SUBMISSIONS = 40
BUILDS = 200
ROUNDS = 3
_LONGEST_S = 300.0  #: a machine that others use as well may take so long
_JOBS_OF_A_BUILD = 1 + DEPENDENTS  #: an export, and the build and the measure that wait for it


def latency() -> Iterator[Row]:
    """From a build's row, and from just before its POST, to the time in its export's ``started_at``,
    which the worker takes as it claims, over the time from just before Celery's ``send_task`` to the
    first line of the task.

    Medians. Both workers are idle, everything has been used once, and the sides take turns. The second
    of the two has an HTTP request and its answer in it, which take as long as Celery does.
    """
    for kind in kinds():
        with _Sides.started(kind) as sides, sides.farm_worker(), sides.bare_worker():
            sides.await_farm_worker()
            turns = range(SUBMISSIONS + 2)
            times = [(*sides.farm_delays(n), sides.bare_delay()) for n in turns][2:]
        stored, posted, theirs = (median(side) * 1000 for side in zip(*times, strict=True))
        for what, ours in (
            (f"a build's row to its first claim, over a task's delay, {kind}", stored),
            (f"the same, from before the build's POST, {kind}", posted),
        ):
            yield row(what, ours, theirs, " ms", most=2)


def news() -> Iterator[Row]:
    """From the time in the event of a build's end until a client that follows the build has it, over the
    same of Celery's ``task-succeeded`` and a receiver of its events, as Flower is.

    Medians; the sides take turns.
    """
    for kind in kinds():
        with (
            _Sides.started(kind) as sides,
            sides.farm_worker(),
            sides.bare_worker(),
            sides.bare_events() as heard,
        ):
            sides.await_farm_worker()
            turns = range(SUBMISSIONS + 2)
            times = [(sides.farm_news(n), sides.bare_news(heard)) for n in turns][2:]
        ours, theirs = (median(side) * 1000 for side in zip(*times, strict=True))
        what = f"an event until a follower has it, over one of Celery's, {kind}"
        yield row(what, ours, theirs, " ms")


def throughput() -> Iterator[Row]:
    """Jobs a second, from the first job's claim to the last one's end, over bare Celery's tasks a
    second, from the first one's start to the last one's.

    Two Celeries: as it is by itself, and durable (``bench.noop_worker``). On all sides a third of the
    messages lie in the broker when the worker starts; each of these jobs, or tasks, makes the worker send
    two more. The median of some rounds in which the sides take turns.
    """
    for kind in kinds():
        with _Sides.started(kind) as sides:
            rates = [
                (sides.farm_rate(number), {peer: sides.bare_rate(peer) for peer in Peer})
                for number in range(ROUNDS)
            ]
        for peer, what in _PEERS.items():
            pairs = [(ours, theirs[peer]) for ours, theirs in rates]
            ours, theirs = sorted(pairs, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
            what = f"no-op jobs/s (no child process) over {what}, {kind}"
            yield row(what, ours, theirs, "/s", digits=0, least=0.5)


_PEERS = {
    Peer.PLAIN: "bare Celery",
    Peer.DURABLE: "Celery with late acks and its results in the database",
}


class _Sides:
    """A farm without workers, and on its broker a bare application without workers."""

    def __init__(self, settings: Settings, client: httpx2.Client) -> None:
        self.client = client
        self._settings = settings
        self._db = Database(settings.database)
        self._bare = bare(settings)
        self._started = settings.home / "started"
        self._started.touch()
        self._digest = submissions.prepare(str(client.base_url), client.headers["Authorization"])

    @classmethod
    @contextmanager
    def started(cls, kind: str) -> Iterator[_Sides]:
        with (
            tempfile.TemporaryDirectory() as folder,
            fresh_database(kind, Path(folder)) as url,
        ):
            settings = Settings(home=Path(folder), database_url=url)
            with api_without_worker(settings) as client:
                sides = cls(settings, client)
                try:
                    yield sides
                finally:
                    sides._bare.close()
                    sides._db.dispose()

    def farm_worker(self) -> AbstractContextManager[None]:
        return module(
            "bench.noop_worker",
            "farm",
            home=self._settings.home,
            database_url=self._settings.database_url,
        )

    def bare_worker(self, peer: Peer = Peer.PLAIN) -> AbstractContextManager[None]:
        return module(
            "bench.noop_worker",
            peer,
            str(self._started),
            home=self._settings.home,
            database_url=self._settings.database_url,
        )

    def await_farm_worker(self) -> None:
        wait_for(lambda: any(w["online"] for w in self.client.get("/v1/workers").json()))

    @contextmanager
    def bare_events(self) -> Iterator[SimpleQueue[float]]:
        """The seconds until each end of the bare worker's tasks was received."""
        heard: SimpleQueue[float] = SimpleQueue()

        def hear(event: dict[str, Any]) -> None:
            if event["hostname"] == "bare@bench":
                heard.put(time.time() - event["timestamp"])

        with self._bare.connection_for_read() as connection:
            receiver = self._bare.events.Receiver(connection, handlers={"task-succeeded": hear})
            thread = threading.Thread(target=lambda: receiver.capture(wakeup=False), daemon=True)
            thread.start()
            wait_for(lambda: self._send(dependents=0) or not heard.empty(), every_s=0.2)
            while heard.qsize() != len(self._starts()):
                time.sleep(0.02)
            while not heard.empty():
                heard.get()
            yield heard
            receiver.should_stop = True
            thread.join()

    def farm_news(self, number: int) -> float:
        """Seconds."""
        build_id = self._submit(number)
        with self.client.stream("GET", f"/v1/builds/{build_id}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    told, last = time.time(), json.loads(line.removeprefix("data:"))
        assert last["state"] == "succeeded"
        return told - datetime.fromisoformat(last["at"]).timestamp()

    def bare_news(self, heard: SimpleQueue[float]) -> float:
        """Seconds."""
        self._send(dependents=0)
        return heard.get(timeout=60)

    def farm_delays(self, number: int) -> tuple[float, float]:
        """Seconds from the build's row, and from before its POST, to the first claim."""
        start = time.time()
        build_id = self._submit(number)
        wait_for(lambda: self._is_over(build_id))
        with self._db.read() as session:
            stored, claimed = session.execute(
                select(Build.created_at, func.min(Job.started_at))
                .join(BuildJob, BuildJob.build_id == Build.id)
                .join(Job, Job.id == BuildJob.job_id)
                .where(Build.id == build_id)
                .group_by(Build.created_at)
            ).one()
        return (claimed - stored).total_seconds(), claimed.timestamp() - start

    def bare_delay(self) -> float:
        """Seconds."""
        before = len(self._starts())
        start = time.time()
        self._send(dependents=0)
        wait_for(lambda: len(self._starts()) > before)
        return self._starts()[-1] - start

    def farm_rate(self, turn: int) -> float:
        """Jobs a second."""
        ids = [self._submit((turn + 1) * BUILDS + n) for n in range(BUILDS)]
        wait_for(lambda: self._count(ids, Job.rung_at.is_not(None)) == BUILDS)
        every = BUILDS * _JOBS_OF_A_BUILD
        with self.farm_worker():
            wait_for(
                lambda: self._count(ids, Job.state == JobState.SUCCEEDED) == every,
                seconds=_LONGEST_S,
                every_s=0.5,
            )
        with self._db.read() as session:
            first, last = session.execute(
                select(func.min(Job.started_at), func.max(Job.finished_at))
                .join(BuildJob, BuildJob.job_id == Job.id)
                .where(BuildJob.build_id.in_(ids))
            ).one()
        assert first is not None
        assert last is not None
        return every / (last - first).total_seconds()

    def bare_rate(self, peer: Peer) -> float:
        """Tasks a second."""
        self._started.write_bytes(b"")
        for _ in range(BUILDS):
            self._send(dependents=DEPENDENTS, keep=peer is Peer.DURABLE)
        every = BUILDS * _JOBS_OF_A_BUILD
        with self.bare_worker(peer):
            wait_for(lambda: len(self._starts()) == every, seconds=_LONGEST_S, every_s=0.5)
        starts = self._starts()
        return every / (max(starts) - min(starts))

    def _submit(self, number: int) -> str:
        # Of every ten of these numbers one is of new work.
        body = submissions.build(self._digest, 10 * number)
        answer = self.client.post("/v1/builds", json=body).raise_for_status()
        return str(answer.json()["id"])

    def _is_over(self, build_id: str) -> bool:
        return self._count([build_id], Job.state == JobState.SUCCEEDED) == _JOBS_OF_A_BUILD

    def _count(self, build_ids: list[str], condition: ColumnElement[bool]) -> int:
        with self._db.read() as session:
            counted = session.scalar(
                select(func.count())
                .select_from(Job)
                .join(BuildJob, BuildJob.job_id == Job.id)
                .where(BuildJob.build_id.in_(build_ids), condition)
            )
        return counted or 0

    def _send(self, *, dependents: int, keep: bool = False) -> None:
        self._bare.send_task(FIRST, args=(dependents,), queue=QUEUE, ignore_result=not keep)

    def _starts(self) -> list[float]:
        return [float(line) for line in self._started.read_text().splitlines()]
