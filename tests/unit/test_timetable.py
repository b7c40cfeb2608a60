"""When jobs would end on the workers that are online."""

from __future__ import annotations

import pytest

from farm.planning.timetable import Slot, Task, Times, timetable

CPU, GPU = "cpu", "tensorrt.sm_90"


def task(name, takes_s=10.0, *after, queue=CPU) -> Task:
    return Task(name=name, queue=queue, takes_s=takes_s, after=after)


def slot(*queues, free_after_s=0.0) -> Slot:
    return Slot(queues=queues or (CPU,), free_after_s=free_after_s)


CHAIN = [task("export"), task("cast", 5, "export"), task("build", 20, "cast")]


@pytest.mark.parametrize(
    ("line", "slots", "ends"),
    [
        pytest.param([], [slot()], {}, id="nothing to do"),
        pytest.param(CHAIN, [slot()], {"export": 10, "cast": 15, "build": 35}, id="a chain"),
        pytest.param(
            CHAIN,
            [slot()] * 3,
            {"export": 10, "cast": 15, "build": 35},
            id="more slots don't help it",
        ),
        pytest.param(
            [task("a"), task("b"), task("c")], [slot()], {"a": 10, "b": 20, "c": 30}, id="in line"
        ),
        pytest.param(
            [task("a"), task("b"), task("c")],
            [slot()] * 2,
            {"a": 10, "b": 10, "c": 20},
            id="two at once",
        ),
        pytest.param(
            [task("a"), task("b", 10, "a"), task("c", 3)],
            [slot()] * 2,
            {"a": 10, "b": 20, "c": 3},
            id="who waits lets others go first",
        ),
        pytest.param([task("a")], [slot(free_after_s=7)], {"a": 17}, id="after what runs now"),
        pytest.param(
            [task("a"), task("b", queue=GPU)], [slot()], {"a": 10}, id="no worker for one of them"
        ),
        pytest.param(
            [task("a", queue=GPU), task("b", 10, "a")], [slot()], {}, id="nor for what waits for it"
        ),
        pytest.param([task("a")], [], {}, id="no worker at all"),
        pytest.param(
            [task("a", 5), task("b", 5, queue=GPU), task("c", 5, queue=GPU)],
            [slot(GPU), slot()],
            {"a": 5, "b": 5, "c": 10},
            id="each in its queue",
        ),
        pytest.param(
            [task("a", 5), task("b", 5, queue=GPU)],
            [slot(CPU, GPU)],
            {"a": 5, "b": 10},
            id="one worker of two queues",
        ),
        pytest.param([task("a", 0), task("b", 0, "a")], [slot()], {"a": 0, "b": 0}, id="no time"),
        pytest.param([task("a", 1, "gone")], [slot()], {"a": 1}, id="after what has ended"),
        pytest.param([task("a", 1, "b"), task("b", 1, "a")], [slot()], {}, id="a circle"),
    ],
)
def test_a_free_slot_takes_the_first_it_can_run(line, slots, ends):
    assert {name: times.ends_s for name, times in timetable(line, slots).items()} == ends


def test_it_tells_when_each_begins():
    assert timetable(CHAIN, [slot()])["build"] == Times(15, 35)
