"""Children: whatever happens in one ends with a clear error, and the parent goes on."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farm.errors import (
    ChildDied,
    ChildOutOfMemory,
    ChildTimedOut,
    InvalidModel,
    StageFault,
    StageInterrupted,
)
from tests.integration.test_sandbox_hidden import states
from tests.sandboxed import wait_for
from workers.runner import child
from workers.runner.child import Child
from workers.runner.child_events import Line, StageProgressed, Tick
from workers.runner.siblings import Siblings


def happy(argument, link):
    link.progress("half way", 0.5)
    print("hello from", argument)
    os.system("echo hello from a grandchild")
    return {"doubled": argument * 2}


def waits_for(path, _link):
    while not Path(path).exists():
        time.sleep(0.01)
    print("here it is")
    return "it came"


def test_what_a_child_says_last_is_heard_by_whoever_was_busy_when_it_ended(tmp_path):
    go_on, printed = tmp_path / "go on", ""
    with Child(waits_for, str(go_on), timeout_s=180) as child:
        for happening in child.events():
            if isinstance(happening, Line):
                printed += happening.text
            elif not go_on.exists():
                go_on.touch()
                # As while a database is slow to take what the child printed.
                wait_for(lambda: not child._process.is_alive())
        assert child.result() == "it came"
    assert printed == "here it is\n"


def refuses(_argument, _link):
    raise InvalidModel("no operator Foo", hint="replace Foo")


def has_a_bug(_argument, _link):
    raise KeyError("surprise")


def crashes(_argument, _link):
    print("about to crash")
    ctypes.string_at(0)


def is_killed(_argument, _link):
    os.kill(os.getpid(), signal.SIGKILL)


def ends_by_a_signal_without_a_name(_argument, _link):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def eats_memory(_argument, _link):
    return len(bytearray(4 << 30))


def sleeps(path, _link):
    grandchild = subprocess.Popen(["sleep", "1000"])
    Path(path).write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(1000)


def run(function, argument=21, *, timeout_s=180, **options):
    with Child(function, argument, timeout_s=timeout_s, **options) as child:
        events = list(child.events())
        return child.result(), events


def test_a_child_gives_its_result_its_output_and_its_progress():
    result, events = run(happy)
    assert result == {"doubled": 42}
    printed = "".join(h.text for h in events if isinstance(h, Line))
    assert "hello from 21\n" in printed
    assert "hello from a grandchild\n" in printed
    assert StageProgressed(phase="half way", share=0.5) in events


def test_an_error_for_the_user_keeps_its_kind_and_hint():
    with pytest.raises(InvalidModel) as caught:
        run(refuses)
    assert (caught.value.detail, caught.value.hint) == ("no operator Foo", "replace Foo")


def names_what_no_database_keeps(_argument, link):
    link.progress("layer \0 \ud800", None)
    return {"a\0b": "c\udfffd", "plain": "é €"}


def test_strings_that_a_database_refuses_are_made_fit_for_it():
    result, events = run(names_what_no_database_keeps)
    assert result == {"a\ufffdb": "c?d", "plain": "é €"}
    assert StageProgressed(phase="layer \ufffd ?", share=None) in events


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (has_a_bug, StageFault, "KeyError"),
        (crashes, ChildDied, "SIGSEGV"),
        (is_killed, ChildOutOfMemory, "killed from outside"),
        (ends_by_a_signal_without_a_name, ChildDied, r"signal \d+"),
    ],
)
def test_a_child_that_dies_says_how_and_the_next_one_runs(function, error, words):
    with pytest.raises(error, match=words):
        run(function)
    assert run(happy)[0] == {"doubled": 42}


def has_no_room(_argument, _link):
    os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize(
    ("function", "told", "is_worth_a_retry"),
    [
        (crashes, "native library crashed", False),
        (has_no_room, "full disk", True),
    ],
)
def test_how_a_child_died_decides_whether_another_try_is_advised(function, told, is_worth_a_retry):
    with pytest.raises(ChildDied) as caught:
        run(function)
    assert told in caught.value.hint
    assert ("farm retry" in caught.value.hint) is is_worth_a_retry


def test_a_child_over_its_memory_limit_ends_alone():
    with pytest.raises(ChildOutOfMemory):
        run(eats_memory, memory_bytes=1 << 30)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(path):
    wait_for(lambda: path.exists() and len(path.read_text().split()) == 2)
    return [int(pid) for pid in path.read_text().split()]


def test_a_child_past_its_time_is_ended_with_its_whole_group(tmp_path):
    path = tmp_path / "pids"
    with Child(sleeps, str(path), timeout_s=0.1) as child:
        pids = pids_in(path)
        with pytest.raises(ChildTimedOut):
            list(child.events())  # its time begins
    wait_for(lambda: not any(map(alive, pids)))


def test_ending_a_child_waits_for_nothing_that_it_is_at(tmp_path):
    path = tmp_path / "pids"
    with Child(sleeps, str(path), timeout_s=180) as child:
        pids = pids_in(path)
        child.end()  # they would sleep on for many minutes
        wait_for(lambda: not any(map(alive, pids)))


def test_killing_the_worker_leaves_no_child_behind(tmp_path):
    path = tmp_path / "pids"
    code = (
        "import sys, tests.integration.test_isolate as t; from workers.runner.child import Child\n"
        f"child = Child(t.sleeps, {str(path)!r}, timeout_s=180)\n"
        "list(child.events())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child, _grandchild = pids_in(path)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))
    # The grandchild was left by a stage that was itself killed: its group is what a worker ends.
    os.kill(_grandchild, signal.SIGKILL)


def counts(path, _link):
    while True:
        with Path(path).open("a") as file:
            file.write(".")
        time.sleep(0.01)


def has_quiet(paths, link):
    watched, go_on = map(Path, paths)
    with link.quiet():
        before = watched.stat().st_size
        time.sleep(0.3)
        during = watched.stat().st_size - before
        link.progress("had quiet", None)
    while not go_on.exists():
        time.sleep(0.01)
    return during


def test_a_child_that_times_something_has_quiet_and_the_others_go_on_after_it(tmp_path):
    count, done = tmp_path / "count", tmp_path / "done"
    siblings = Siblings()
    with (
        Child(counts, str(count), timeout_s=180, siblings=siblings) as busy,
        Child(has_quiet, [str(count), str(done)], timeout_s=180, siblings=siblings) as timing,
    ):
        wait_for(lambda: count.exists() and count.stat().st_size > 3)
        for happening in timing.events():
            if isinstance(happening, StageProgressed):
                break
        after = count.stat().st_size
        for _ in timing.events():  # hears that the quiet is over, sooner or later
            if count.stat().st_size > after + 3:
                break
        done.touch()
        assert all(isinstance(event, Tick) for event in timing.events())
        assert timing.result() == 0
        busy.end()


def test_a_child_that_dies_while_it_has_quiet_lets_the_others_go_on(tmp_path):
    count = tmp_path / "count"
    siblings = Siblings()
    with Child(counts, str(count), timeout_s=180, siblings=siblings) as busy:
        with Child(dies_in_quiet, None, timeout_s=180, siblings=siblings) as timing:
            list(timing.events())
        after = size(count)
        wait_for(lambda: size(count) > after + 3)
        busy.end()


def dies_in_quiet(_argument, link):
    with link.quiet():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_starts_while_another_has_quiet_waits_for_its_end(tmp_path):
    count, done = tmp_path / "count", tmp_path / "done"
    siblings = Siblings()
    with Child(keeps_quiet, str(done), timeout_s=180, siblings=siblings) as timing:
        for happening in timing.events():
            if isinstance(happening, StageProgressed):
                break
        with Child(counts, str(count), timeout_s=180, siblings=siblings) as late:
            ticks = late.events()  # its guard may start it only after it joined its siblings
            while not is_stopped(late):
                assert next(ticks)
            before = size(count)
            for _ in range(5):
                assert next(ticks)
            assert is_stopped(late)
            assert size(count) == before
            done.touch()
            list(timing.events())
            wait_for(lambda: size(count) > before + 3)
            late.end()


def is_stopped(child):
    """Whether all that its guard has started is stopped."""
    return {state for who, state in states(child._pid) if who == "job"} == {"T"}


def size(path):
    return path.stat().st_size if path.exists() else 0


def keeps_quiet(done, link):
    with link.quiet():
        link.progress("quiet", None)
        while not Path(done).exists():
            time.sleep(0.01)


def test_a_fork_server_killed_while_it_starts_a_child_interrupts_the_job(monkeypatch):
    def dies(_process):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(child.processes.Process, "start", dies)
    with pytest.raises(StageInterrupted, match="forked from was killed from outside"):
        Child(happy, None, timeout_s=180)
