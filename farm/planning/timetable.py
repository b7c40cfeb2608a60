"""When jobs would end on the workers that are online, if each took as long as expected. Pure, no I/O.

List scheduling: a free slot takes the first job in line that it can run.

Source: Graham: Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 17(2), 1969.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job to come."""

    name: Hashable
    queue: str
    takes_s: float
    after: Collection[Hashable] = ()  #: tasks that have to end first; others count as ended


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Room for one job in a worker."""

    queues: Collection[str]
    free_after_s: float = 0.0


@dataclass(frozen=True)
class Times:
    """When a task begins and ends, in seconds from now."""

    begins_s: float
    ends_s: float


def timetable(line: Sequence[Task], slots: Sequence[Slot]) -> Mapping[Hashable, Times]:
    """When each task begins and ends, for those that ever do: no slot may read a task's queue.

    Parameters:
        line: in the order in which free slots take them.
    """
    read = {queue for slot in slots for queue in slot.queues}
    names = {task.name for task in line}
    left = {task.name: names.intersection(task.after) for task in line}
    waiting: defaultdict[Hashable, list[Hashable]] = defaultdict(list)
    for name, needs in left.items():
        for one in needs:
            waiting[one].append(name)
    pending = [task for task in line if task.queue in read]
    found: dict[Hashable, Times] = {}
    free = {number: slot for number, slot in enumerate(slots) if slot.free_after_s <= 0}
    busy: list[tuple[float, int, Hashable]] = [
        (slot.free_after_s, number, None)
        for number, slot in enumerate(slots)
        if slot.free_after_s > 0
    ]
    heapq.heapify(busy)
    at = 0.0
    while True:
        for task in _startable(pending, left, free):
            number = _reading(free, task.queue)
            if number is None:
                continue
            del free[number]
            pending.remove(task)
            found[task.name] = Times(at, at + task.takes_s)
            heapq.heappush(busy, (at + task.takes_s, number, task.name))
        if not pending or not busy:
            return found
        at, number, ended = heapq.heappop(busy)
        free[number] = slots[number]
        for name in waiting.pop(ended, ()):
            left[name].discard(ended)


def _startable(
    pending: Sequence[Task],
    left: Mapping[Hashable, Collection[Hashable]],
    free: Mapping[int, Slot],
) -> Iterator[Task]:
    """The tasks whose inputs are there, in line, while a slot is free."""
    for task in list(pending):
        if not free:
            return
        if not left[task.name]:
            yield task


def _reading(free: Mapping[int, Slot], queue: str) -> int | None:
    """A free slot that reads a queue."""
    return next((number for number, slot in free.items() if queue in slot.queues), None)
