"""When a build's jobs would start and end: on the workers that are online, after the jobs in line before
them, if each took as long as its like have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import Row, bindparam, or_, select
from sqlalchemy.orm import Session

from farm.builds.history import History, Sought
from farm.database.base import now
from farm.database.tables import IS_IN_LINE, IS_RUNNING, Job
from farm.fleet.workers import Fleet
from farm.planning.forecast import Range
from farm.planning.timetable import Slot, Task, Times, timetable
from farm.queue import turns

_NEWEST = 2**63 - 1
MOST_AHEAD = 1000  #: jobs before a build's that are counted in each queue
#: A slot's share of a line is at most so many tasks, of which each stands for several jobs of a longer line.
_TASKS_PER_SLOT = 8

_KIN = (Job.kind, Job.runtime, Job.precision, Job.target, Job.source_bytes)
_AHEAD = (
    select(*_KIN, Job.priority, Job.client)
    .where(
        Job.queue == bindparam("queue"),
        Job.client >= "",  # of any: so that SQLite takes the index of what is in line
        IS_IN_LINE,
        Job.place <= bindparam("place"),
        or_(Job.place < bindparam("place"), Job.id < bindparam("first")),
        Job.id.not_in(bindparam("own", expanding=True)),
    )
    .limit(bindparam("most"))
)
_RUNNING = select(*_KIN, Job.id, Job.owner, Job.started_at).where(
    Job.queue == bindparam("queue"), IS_RUNNING
)


_Which = Literal["expected", "low", "high"]


@dataclass(frozen=True, kw_only=True)
class Coming:
    """A job of the build that hasn't ended."""

    key: str
    queue: str
    took: Range | None  #: how long its like took; None if unknown
    after: Collection[str] = ()  #: keys of the jobs it takes outputs of
    running_for_s: float | None = None  #: None if it hasn't started


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whose jobs they are, and where they are in line."""

    client: str
    priority: int
    own: Collection[int] = ()  #: jobs of the build that are in line already
    places: Mapping[str, int] = field(default_factory=dict)  #: queue → the build's place there
    first: int = _NEWEST  #: of jobs in the same place, those before this one come first


@dataclass(kw_only=True)
class Ahead:
    """The jobs that come first in a queue."""

    jobs: int = 0
    more_urgent: int = 0
    own: int = 0


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is to be expected of a build's jobs."""

    took: Range | None  #: until the last of them ends; None if unknown of all
    unknown: int  #: jobs, with those before them, of which none like them has run
    stuck: Collection[str]  #: keys of those that no online worker can run
    starts_s: Mapping[str, float]  #: queue → when the first job there starts
    ahead: Mapping[str, Ahead]
    is_cut: bool  #: whether more come first than were looked at

    @property
    def is_least(self) -> bool:
        """Whether it takes longer than told."""
        return bool(self.unknown or self.stuck or self.is_cut)


def outlook(
    session: Session,
    fleet: Fleet,
    history: History,
    jobs: Sequence[Coming],
    who: Who,
    *,
    most_ahead: int = MOST_AHEAD,
) -> Outlook:
    """What is to be expected of a build's jobs, given who is online and what comes first.

    Parameters:
        most_ahead: how many jobs are looked at that come first, in each queue.
    """
    scene = _Scene(session, fleet, history, who, most_ahead)
    scene.enter({job.queue for job in jobs if job.running_for_s is None})
    expected, low, high = (scene.play(jobs, which) for which in get_args(_Which))
    known = [job for job in jobs if job.took is not None and job.key in expected]
    starts: dict[str, float] = {}
    for job in jobs:
        if job.running_for_s is None and job.key in expected:
            begins_s = expected[job.key].begins_s
            starts[job.queue] = min(begins_s, starts.get(job.queue, begins_s))
    has_range = any(job.took and job.took.low is not None for job in known)
    return Outlook(
        is_cut=any(ahead.jobs == most_ahead for ahead in scene.ahead.values()),
        took=Range(_end(expected), *((_end(low), _end(high)) if has_range else ()))
        if known or not jobs
        else None,
        unknown=scene.unknown + sum(job.took is None for job in jobs),
        stuck=[job.key for job in jobs if job.key not in expected],
        starts_s=starts,
        ahead={queue: scene.ahead.get(queue, Ahead()) for queue in {job.queue for job in jobs}},
    )


def _end(times: Mapping[str, Times]) -> float:
    return max((one.ends_s for one in times.values()), default=0.0)


def _takes_s(took: Range | None, which: _Which, running_for_s: float = 0.0) -> float:
    """How much longer a job takes; nothing if that is unknown."""
    if took is None:
        return 0.0
    chosen = {"expected": took.expected, "low": took.low, "high": took.high}[which]
    return max(0.0, (took.expected if chosen is None else chosen) - running_for_s)


class _Scene:
    """The workers, what they run now, and what they will run first."""

    def __init__(
        self, session: Session, fleet: Fleet, history: History, who: Who, most_ahead: int
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._history = history
        self._who = who
        self._most_ahead = most_ahead
        self._slots: list[tuple[Collection[str], Range | None, float]] = []
        self._line: dict[str, list[Range | None]] = {}
        self.ahead: dict[str, Ahead] = {}
        self.unknown = 0

    def enter(self, queues: Collection[str]) -> None:
        """Look at the workers that read these queues, and at all that they read."""
        at, workers = now(), self._fleet.reading(queues)
        running: defaultdict[str | None, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for queue in sorted(set(queues).union(*(read for _, read in workers))):
            self._look_ahead(queue)
            for row in self._session.connection().execute(_RUNNING, {"queue": queue}):
                running[row.owner].append(row)
        for worker, read in workers:
            rows = running[worker.name]
            for row in rows:
                took = self._took(row)
                self.unknown += took is None and row.id not in self._who.own
                running_s = (at - row.started_at).total_seconds()
                self._slots.append((read, took, running_s))
            self._slots += [(read, None, 0.0)] * (worker.slots - len(rows))

    def _look_ahead(self, queue: str) -> None:
        who, ahead = self._who, Ahead()
        place = who.places.get(queue) or turns.next_place(
            self._session, queue, who.client, who.priority
        )
        values = {
            "queue": queue,
            "place": place,
            "own": list(who.own),
            "first": who.first,
            "most": self._most_ahead,
        }
        line = self._line.setdefault(queue, [])
        for row in self._session.connection().execute(_AHEAD, values):
            ahead.jobs += 1
            ahead.more_urgent += row.priority > who.priority
            ahead.own += row.client == who.client
            line.append(self._took(row))
        self.unknown += line.count(None)
        self.ahead[queue] = ahead

    def _took(self, row: Row[*tuple[Any, ...]]) -> Range | None:
        if not row.source_bytes:
            return None
        # By powers of two: a long line holds many sizes.
        size = 2 ** round(math.log2(row.source_bytes))
        sought = Sought(row.kind, row.runtime, row.precision, row.target, size)
        found = self._history.forecast(self._session, sought)
        return None if found is None else found.took_s

    def play(self, jobs: Iterable[Coming], which: _Which) -> Mapping[str, Times]:
        """When each of the build's jobs begins and ends, for those that ever do."""
        slots = [
            Slot(queues=read, free_after_s=_takes_s(took, which, since_s))
            for read, took, since_s in self._slots
        ]
        line = [
            Task(name=(queue, number), queue=queue, takes_s=takes_s)
            for queue, ahead in self._line.items()
            for number, takes_s in enumerate(self._lumped(queue, ahead, which))
        ]
        for job in jobs:
            queue = job.queue
            if job.running_for_s is not None:  # in a place of its own
                queue = job.key
                slots.append(Slot(queues=(queue,)))
            takes_s = _takes_s(job.took, which, job.running_for_s or 0.0)
            line.append(Task(name=job.key, queue=queue, takes_s=takes_s, after=job.after))
        found = timetable(line, slots)
        return {name: times for name, times in found.items() if isinstance(name, str)}

    def _lumped(self, queue: str, ahead: Sequence[Range | None], which: _Which) -> list[float]:
        """How long the jobs ahead in a queue take; of a long line, in as many equal lumps as keep its slots
        busy."""
        takes_s = [_takes_s(took, which) for took in ahead]
        most = _TASKS_PER_SLOT * sum(queue in read for read, _, _ in self._slots)
        if not 0 < most < len(takes_s):
            return takes_s
        return [sum(takes_s) / most] * most
