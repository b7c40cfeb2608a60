"""Registered workers: which are online, with which GPU, queues and toolchain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.base import now
from farm.database.job_rows import JobRow
from farm.database.tables import IS_RUNNING, Job, Worker
from farm.errors import WorkerNameTaken
from farm.machine.load import GpuLoad
from farm.schemas.fleet import WorkerJob, WorkerView
from farm.specs import gpus
from farm.specs.queues import Queue
from farm.specs.states import JobState

_FORGET = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What a worker reports about itself."""

    name: str
    host: str
    gpu: str | None
    gpu_uuid: str | None
    tags: tuple[str, ...]
    queues: tuple[str, ...]
    runtimes: Mapping[str, str]
    toolchain: Mapping[str, str]
    slots: int = 1  #: jobs it runs at once
    holder: str | None = None  #: whose the name is: the id of the home that it works in


def require_free(
    session: Session, name: str, *, host: str, holder: str | None, ttl_s: float
) -> None:
    """Return if no worker of another machine, or home, is online by this name.

    Raises:
        WorkerNameTaken
    """
    row = session.get(Worker, name)
    if row is not None:
        _require_free(row, host=host, holder=holder, ttl_s=ttl_s)


def _require_free(row: Worker, *, host: str, holder: str | None, ttl_s: float) -> None:
    if row.left_at is not None:
        return
    # One of an older farm has no holder.
    is_ours = row.host == host and row.holder in (None, holder)
    if not is_ours and now() - row.last_seen_at < timedelta(seconds=ttl_s):
        raise taken(row, ttl_s=ttl_s)


def taken(row: Worker, *, ttl_s: float) -> WorkerNameTaken:
    """The error that says who has a name."""
    seen_s = max(0.0, (now() - row.last_seen_at).total_seconds())
    return WorkerNameTaken(
        f"{row.name} is online on {row.host} since {row.started_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"last seen {seen_s:.0f} s ago",
        hint="give this machine another name: farm worker --name NAME; or stop the other: if it dies, its "
        f"name is free after {ttl_s:g} s",
    )


def announce(session: Session, worker: Announcement, *, ttl_s: float | None = None) -> None:
    """Record that a worker came online; forget workers not seen for a week.

    Of several that begin at once by a new name the first to commit has it: the others wait for it, and are
    refused.

    Parameters:
        ttl_s: how long another one without a sign of life has the name; by default it has it no longer.

    Raises:
        WorkerNameTaken
    """
    at = now()
    told: dict[str, object] = {
        "host": worker.host,
        "holder": worker.holder,
        "gpu": worker.gpu,
        "gpu_uuid": worker.gpu_uuid,
        "tags": list(worker.tags),
        "slots": worker.slots,
        "queues": list(worker.queues),
        "runtimes": dict(worker.runtimes),
        "toolchain": dict(worker.toolchain),
        "unread": None,
        "sandbox": {},
        "gpu_load": None,
        "started_at": at,
        "last_seen_at": at,
        "left_at": None,
    }
    while not upserts.insert_new(session, Worker, {"name": worker.name} | told):
        row = session.get(Worker, worker.name, with_for_update=True)
        if row is None:  # forgotten meanwhile
            continue
        if ttl_s is not None:
            _require_free(row, host=worker.host, holder=worker.holder, ttl_s=ttl_s)
        for name, value in told.items():
            setattr(row, name, value)
        session.flush()
        break
    session.execute(delete(Worker).where(Worker.last_seen_at < at - _FORGET))


def seen(
    session: Session,
    name: str,
    *,
    holder: str | None = None,
    unread: Sequence[str] = (),
    load: GpuLoad | None = None,
) -> bool:
    """Record that a worker is alive; False if its name is another's by now.

    Parameters:
        unread: queues that it should read and doesn't.
        load: of its GPU.
    """
    row = session.get(Worker, name, with_for_update=True)
    if row is not None and row.holder != holder:
        return False
    if row is not None:
        row.last_seen_at = now()
        if (row.unread or []) != list(unread):
            row.unread = list(unread)
        row.gpu_load = dict(load.known()) if load else None
        row.left_at = None
    return True


def confines(session: Session, name: str, sandbox: Mapping[str, object]) -> bool:
    """Record which parts of job isolation a worker enforces, as tested; False if it isn't registered."""
    row = session.get(Worker, name)
    if row is not None:
        row.sandbox = dict(sandbox)
    return row is not None


def offers(
    session: Session, name: str, *, runtimes: Mapping[str, str], queues: Sequence[str]
) -> bool:
    """Record what a worker can build since it has tried; False if it isn't registered."""
    row = session.get(Worker, name)
    if row is not None:
        row.runtimes = dict(runtimes)
        row.queues = list(queues)
    return row is not None


def left(session: Session, name: str, *, holder: str | None = None) -> None:
    """Record that a worker left, unless its name is another's by now."""
    row = session.get(Worker, name)
    if row is not None and row.holder == holder:
        row.left_at = now()


class Fleet:
    """A snapshot of the workers."""

    def __init__(self, workers: Iterable[Worker], *, ttl_s: float, at: datetime) -> None:
        self._ttl = timedelta(seconds=ttl_s)
        self._at = at
        # Online workers first, then the most recently started: the newest toolchain, even during a rolling
        # upgrade.
        self.workers = sorted(workers, key=lambda w: (self.online(w), w.started_at), reverse=True)

    @classmethod
    def load(cls, session: Session, *, ttl_s: float) -> Fleet:
        workers = session.scalars(select(Worker)).all()
        for worker in workers:
            # It outlives the session, and so mustn't be expired by the session's rollback.
            session.expunge(worker)
        return cls(workers, ttl_s=ttl_s, at=now())

    def online(self, worker: Worker) -> bool:
        return worker.left_at is None and self._at - worker.last_seen_at < self._ttl

    @cached_property
    def online_queues(self) -> Counter[str]:
        """Queue → how many workers read it."""
        return self.readers()

    def readers(self, *, but: Collection[str | None] = ()) -> Counter[str]:
        """Queue → how many online workers read it, without those of these names."""
        online = (w for w in self.workers if self.online(w) and w.name not in but)
        return Counter(queue for worker in online for queue in _read(worker))

    def reading(self, queues: Collection[str]) -> list[tuple[Worker, frozenset[str]]]:
        """The online workers that read any of these queues, each with all that it reads."""
        found = [(w, frozenset(_read(w))) for w in self.workers if self.online(w)]
        return [(worker, read) for worker, read in found if not read.isdisjoint(queues)]

    @cached_property
    def unread_queues(self) -> dict[str, list[str]]:
        """Queue → its online workers, for queues that none of them reads."""
        found: dict[str, list[str]] = {}
        for worker in self.workers:
            if self.online(worker):
                for queue in worker.unread or ():
                    found.setdefault(queue, []).append(worker.name)
        return {q: sorted(names) for q, names in found.items() if not self.online_queues.get(q)}

    def toolchain(self, queue: str) -> Mapping[str, str]:
        """The toolchain of the worker most likely to take a job from this queue."""
        for worker in self.workers:
            if queue in worker.queues:
                return worker.toolchain
        return {}

    def waits_for(self, job: Job | JobRow) -> str | None:
        """Which worker a queued job waits for, if no online worker can run it."""
        return self.lacks(job.queue) if job.state == JobState.QUEUED else None

    def lacks(self, name: str) -> str | None:
        """Which worker the jobs of a queue wait for, if no online worker reads it."""
        if self.online_queues.get(name):
            return None
        deaf = self.unread_queues.get(name)
        if deaf:
            return f"{' or '.join(deaf)}, online without reading its queue (restart it)"
        queue = Queue.parse(name)
        if queue is None or queue.gpu == gpus.CPU:
            return f"{queue.worker if queue else 'a CPU worker'} (start one: farm worker)"
        return f"{queue.worker} (start one there: farm worker)"


def _read(worker: Worker) -> set[str]:
    return set(worker.queues) - set(worker.unread or ())


def worker_views(session: Session, fleet: Fleet) -> list[WorkerView]:
    running: dict[str | None, list[WorkerJob]] = {}
    for owner, job, title in session.execute(
        select(Job.owner, Job.id, Job.title).where(IS_RUNNING).order_by(Job.started_at, Job.id)
    ):
        running.setdefault(owner, []).append(WorkerJob(id=job, title=title))
    views = []
    for worker in sorted(fleet.workers, key=lambda w: w.name):
        jobs = running.get(worker.name, [])
        views.append(
            WorkerView(
                **{c: getattr(worker, c) for c in _WORKER_FIELDS},
                unread=worker.unread or [],
                online=fleet.online(worker),
                job=jobs[0].id if jobs else None,
                job_title=jobs[0].title if jobs else None,
                jobs=jobs,
            )
        )
    return views


_WORKER_FIELDS = (
    "name host gpu gpu_uuid tags slots queues runtimes toolchain sandbox started_at last_seen_at"
).split()
