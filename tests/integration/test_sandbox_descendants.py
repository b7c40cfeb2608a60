"""Nothing that a job has started outlives it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from farm.errors import ChildDied, ChildTimedOut, StageFault
from tests.sandboxed import ROOT, wait_for
from workers.runner.child import Child
from workers.sandbox import Feature


def leaves_others(argument, _link):
    """Processes in sessions of their own, which hear no signal; each holds a file until it ends."""
    held = open(argument["held"], "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(sig, signal.SIG_IGN)
                time.sleep(600)
            os._exit(0)
    Path(argument["ready"]).touch()
    how = argument["how"]
    if how == "fails":
        raise ValueError("so it is")
    if how == "crashes":
        ctypes.string_at(0)
    if how == "waits":
        time.sleep(600)
    return


def finish(child):
    list(child.events())
    return child.result()


def is_held(file):
    with file.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("sandboxed", [True, False])
@pytest.mark.parametrize(
    ("how", "error"),
    [("succeeds", None), ("fails", StageFault), ("crashes", ChildDied), ("waits", ChildTimedOut)],
)
def test_nothing_that_a_job_has_started_outlives_it(box, how, error, sandboxed):
    held = box.workdir / "held"
    argument = {"held": str(held), "ready": str(box.workdir / "ready"), "how": how}
    with Child(
        leaves_others,
        argument,
        timeout_s=180 if how != "waits" else 3,
        sandbox=box if sandboxed else None,
    ) as child:
        if error is None:
            finish(child)
        else:
            if how == "waits":  # its time begins when it is followed
                wait_for((box.workdir / "ready").exists)
            with pytest.raises(error):
                finish(child)
        assert not is_held(held)


def test_a_cancelled_job_and_all_it_has_started_have_ended_when_it_is_cancelled(box):
    held, ready = box.workdir / "held", box.workdir / "ready"
    argument = {"held": str(held), "ready": str(ready), "how": "waits"}
    with Child(leaves_others, argument, timeout_s=180, sandbox=box) as child:
        wait_for(ready.exists)
        assert is_held(held)
        child.pause()  # as while another has quiet
        child.end()
        assert not is_held(held)


KILLED = """
import sys
from pathlib import Path
from tests.integration import test_sandbox_descendants as t
from workers.runner.forks import preload
from workers.runner.child import Child
from workers.sandbox import Limits, Sandbox
if __name__ == "__main__":
    preload([])
    work = Path(sys.argv[1])
    box = Sandbox(workdir=work, reads=(), limits=Limits.of_machine(work, slots=2, timeout_s=60))
    argument = {"held": str(work / "held"), "ready": str(work / "ready"), "how": "waits"}
    with Child(t.leaves_others, argument, timeout_s=180, sandbox=box) as child:
        for _ in child.events():
            pass
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_killed_worker_leaves_nothing_running(tmp_path, needs, stopped):
    needs(Feature.DESCENDANTS)
    worker = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT)
    try:
        wait_for((tmp_path / "ready").exists)
        assert is_held(tmp_path / "held")
        if stopped:
            for pid in children(worker.pid):
                for one in children(pid):
                    with suppress(ProcessLookupError):
                        os.killpg(one, signal.SIGSTOP)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not is_held(tmp_path / "held"))


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
