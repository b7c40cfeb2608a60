"""The metrics that come from the database.

A scrape costs little however many builds there are: what is live is read from indexes that hold only that,
what has ended is tallied, and all of it serves every scrape of the next seconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm import __version__
from farm.database import tallies
from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import IS_LIVE, Build, EngineRow, Job, Worker
from farm.errors import DatabaseUnavailable, StorageUnavailable
from farm.fleet import targets
from farm.fleet.workers import Fleet
from farm.machine.load import GpuLoad
from farm.monitoring.families import Values, counter_of, gauge_of, histogram_of
from farm.schemas.usage import FileKind, Files
from farm.specs import gpus, monitoring
from farm.specs.monitoring import Form
from farm.specs.queues import Queue
from farm.specs.states import BUILD_LIVE, LIVE, JobState
from farm.stages import JobKind
from farm.store.base import Store

_FRESH_S = 5.0
#: The queue under which those are told that no worker reads and no GPU of the farm's list has: a tag of a
#: slice may be anything that a client typed.
_OTHER = "other"

_LIVE_JOBS = (
    select(Job.queue, Job.kind, Job.state, func.count(), func.min(Job.queued_at))
    .where(IS_LIVE)
    .group_by(Job.state, Job.queue, Job.kind)
)
_OWNERS = select(Job.owner).where(IS_LIVE, Job.state == JobState.RUNNING).distinct()
_LIVE_BUILDS = (
    select(Build.state, func.count()).where(Build.state.in_(BUILD_LIVE)).group_by(Build.state)
)
_ENGINES = select(EngineRow.gpu, EngineRow.precision, func.count()).group_by(
    EngineRow.gpu, EngineRow.precision
)


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What the store held."""

    kinds: Mapping[FileKind, Files]
    at: datetime


class Figures(Collector):
    """All metrics of the farm as a whole.

    Parameters:
        stock: what the store held when it was last counted; None if it hasn't been.
    """

    def __init__(
        self, db: Database, store: Store, stock: Callable[[], Stock | None], *, worker_ttl_s: float
    ) -> None:
        self._db = db
        self._store = store
        self._stock = stock
        self._worker_ttl_s = worker_ttl_s
        self._reading = threading.Lock()
        self._families: list[Family] = []
        self._read_at = -_FRESH_S

    def collect(self) -> Iterator[Family]:
        yield gauge_of(monitoring.INFO, {(__version__,): 1})
        # Scrapes at the same time read once.
        with self._reading:
            if time.monotonic() - self._read_at >= _FRESH_S:
                self._families = self._read()
                self._read_at = time.monotonic()
            yield from self._families

    def forget(self) -> None:
        """Read anew for the next scrape."""
        with self._reading:
            self._read_at = -_FRESH_S

    def _read(self) -> list[Family]:
        try:
            with self._db.read() as session:
                found = [*self._of(session)]
        except DatabaseUnavailable:
            # This process's own metrics are told all the same.
            return [gauge_of(monitoring.DATABASE_UP, {(): 0})]
        return [gauge_of(monitoring.DATABASE_UP, {(): 1}), *found, *self._of_store()]

    def _of(self, session: Session) -> Iterator[Family]:
        builds: Values = dict.fromkeys(((state,) for state in sorted(BUILD_LIVE)), 0)
        builds |= {(state,): count for state, count in session.execute(_LIVE_BUILDS)}
        yield gauge_of(monitoring.BUILDS, builds)
        fleet = Fleet.load(session, ttl_s=self._worker_ttl_s)
        yield from _of_queues(session, fleet)
        yield from _of_workers(fleet)
        engines = session.execute(_ENGINES)
        yield gauge_of(monitoring.ENGINES, {(gpu, of): count for gpu, of, count in engines})
        counted = tallies.read(session)
        for metric in monitoring.TALLIED:
            if metric.form is Form.COUNTER:
                yield counter_of(metric, counted.counters.get(metric.name, {}))
            else:
                yield histogram_of(metric, counted.histograms.get(metric.name, {}))

    def _of_store(self) -> Iterator[Family]:
        stock = self._stock()
        kinds = stock.kinds if stock else {}
        yield gauge_of(monitoring.STORE_BYTES, {(kind,): of.bytes for kind, of in kinds.items()})
        yield gauge_of(monitoring.STORE_FILES, {(kind,): of.files for kind, of in kinds.items()})
        yield gauge_of(monitoring.STORE_COUNTED, {(): stock.at.timestamp()} if stock else {})
        try:
            free = self._store.free_bytes()
        except StorageUnavailable:
            free = None
        yield gauge_of(monitoring.STORE_FREE, {} if free is None else {(): free})


def _of_queues(session: Session, fleet: Fleet) -> Iterator[Family]:
    known = {*targets.queues(), *(queue for worker in fleet.workers for queue in worker.queues)}
    zero: Values = {_labels(queue): 0 for queue in sorted(known | {_OTHER})}
    queued, running, ages = dict(zero), dict(zero), dict(zero)
    jobs: Values = {(kind, state): 0 for kind in JobKind for state in sorted(LIVE)}
    at = now()
    for queue, kind, state, count, since in session.execute(_LIVE_JOBS):
        jobs[kind, state] = jobs.get((kind, state), 0) + count
        labels = _labels(queue if queue in known else _OTHER)
        if state == JobState.RUNNING:
            running[labels] += count
        elif state == JobState.QUEUED:
            queued[labels] += count
            if since is not None:
                ages[labels] = max(ages[labels], (at - since).total_seconds())
    yield gauge_of(monitoring.JOBS, jobs)
    yield gauge_of(monitoring.QUEUED_JOBS, queued)
    yield gauge_of(monitoring.RUNNING_JOBS, running)
    yield gauge_of(monitoring.QUEUE_AGE, ages)
    busy = set(session.scalars(_OWNERS))
    for metric, readers in (
        (monitoring.QUEUE_WORKERS, fleet.online_queues),
        (monitoring.IDLE_WORKERS, fleet.readers(but=busy)),
    ):
        yield gauge_of(metric, zero | {_labels(queue): n for queue, n in readers.items()})


def _labels(queue: str) -> tuple[str, str, str]:
    """A queue, its runtime and its GPU tag."""
    if queue == _OTHER:
        return queue, "", queue
    try:
        parsed = Queue.parse(queue)
    except ValueError:  # of a newer worker's runtime
        return queue, "", _OTHER
    return (queue, parsed.runtime, parsed.gpu) if parsed else (queue, "", gpus.CPU)


def _of_workers(fleet: Fleet) -> Iterator[Family]:
    states = Counter(_state(fleet, worker) for worker in fleet.workers)
    yield gauge_of(
        monitoring.WORKERS,
        {(state,): states[state] for state in ("online", "deaf", "silent", "left")},
    )
    loads: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for worker in filter(fleet.online, fleet.workers):
        load = GpuLoad.read(worker.gpu_load or {})
        for name, value in load.known():
            loads[name][worker.name, worker.tags[-1] if worker.tags else ""] = value
    for name, metric in _LOADS.items():
        yield gauge_of(metric, loads[name])


_LOADS = {
    "utilization": monitoring.GPU_UTILIZATION,
    "memory_used_bytes": monitoring.GPU_MEMORY_USED,
    "memory_bytes": monitoring.GPU_MEMORY,
    "power_w": monitoring.GPU_POWER,
    "temperature_c": monitoring.GPU_TEMPERATURE,
}


def _state(fleet: Fleet, worker: Worker) -> str:
    if fleet.online(worker):
        return "deaf" if worker.unread else "online"
    return "silent" if worker.left_at is None else "left"
