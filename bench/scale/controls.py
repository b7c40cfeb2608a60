"""What the bench's processes share: what they are to do, and what they have done."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

SPAWN: SpawnContext = multiprocessing.get_context("spawn")


def _number() -> Synchronized[float]:
    return SPAWN.Value("d", 0.0)


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Set by the bench: ``upto``, ``pairs_per_s``, ``most_open`` and ``hold_s``. The others are counts."""

    upto: Synchronized[float] = field(default_factory=_number)  #: pairs of submissions, in all
    pairs_per_s: Synchronized[float] = field(default_factory=_number)  #: 0: as fast as it goes
    most_open: Synchronized[float] = field(default_factory=_number)  #: unfinished jobs at most
    hold_s: Synchronized[float] = field(default_factory=_number)  #: how long a job runs

    pairs: Synchronized[float] = field(default_factory=_number)  #: begun,
    done: Synchronized[float] = field(default_factory=_number)  #: and submitted
    ran: Synchronized[float] = field(default_factory=_number)  #: jobs that submissions created,
    joined: Synchronized[float] = field(default_factory=_number)  #: joined while in flight,
    cached: Synchronized[float] = field(default_factory=_number)  #: and found done
    finished: Synchronized[float] = field(default_factory=_number)  #: jobs
    ready: Synchronized[float] = field(default_factory=_number)  #: threads that have started
    broken: Synchronized[float] = field(default_factory=_number)  #: units of work, done again
    lost: Synchronized[float] = field(default_factory=_number)  #: leases
    failures: Synchronized[float] = field(default_factory=_number)  #: of threads, printed by them
    stopped: Event = field(default_factory=SPAWN.Event)

    @property
    def asked(self) -> int:
        """Jobs that submissions asked for: each ran, was joined, or was done already."""
        return int(self.ran.value + self.joined.value + self.cached.value)

    @property
    def is_idle(self) -> bool:
        """Whether all that was begun has ended."""
        all_done = self.done.value >= self.pairs.value
        return all_done and self.finished.value >= self.ran.value

    @property
    def is_full(self) -> bool:
        """Whether enough jobs are unfinished for now."""
        return self.ran.value - self.finished.value > self.most_open.value


def add(to: Synchronized[float], number: float) -> float:
    """Add to a count; return it."""
    with to.get_lock():
        to.value += number
        return to.value


class Pace:
    """Gives a process's threads their turns, at its share of the rate."""

    def __init__(self, controls: Controls, processes: int) -> None:
        self._controls = controls
        self._processes = processes
        self._lock = threading.Lock()
        self._next_s = 0.0

    def turn(self) -> int | None:
        """The number of the next pair; None if the thread is to ask again after a moment."""
        controls = self._controls
        if controls.is_full:
            return None
        with self._lock:
            at_s, rate = time.monotonic(), controls.pairs_per_s.value
            if rate:
                if at_s < self._next_s:
                    return None
                self._next_s = max(self._next_s, at_s - 1) + self._processes / rate
        with controls.pairs.get_lock():
            if controls.pairs.value >= controls.upto.value:
                return None
            controls.pairs.value += 1
            return int(controls.pairs.value)
