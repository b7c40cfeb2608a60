"""A stage that is ended from outside is interrupted; one that ends by its own doing has failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from farm.errors import ChildDied, ChildOutOfMemory, FarmError, StageInterrupted
from tests.sandboxed import wait_for
from workers.runner.child import Child
from workers.sandbox import Sandbox, tree


def sleeps(ready, _link):
    Path(ready).touch()
    time.sleep(600)


def of_guard(child: Child) -> Sequence[int]:
    return [child.pid]


def of_job(child: Child) -> Sequence[int]:
    return list(tree.of_job(child.pid))


def from_the_last(child: Child) -> Sequence[int]:
    return [*of_job(child), child.pid]


def from_the_first(child: Child) -> Sequence[int]:
    return [child.pid, *of_job(child)]


IN_ORDER = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
ENDINGS = [
    (of_guard, signal.SIGKILL),
    *((of_guard, sig) for sig in IN_ORDER),
    *((of_job, sig) for sig in IN_ORDER),
    (from_the_last, signal.SIGTERM),
    (from_the_first, signal.SIGTERM),
    (from_the_first, signal.SIGKILL),
]


def ended(child: Child, ready: Path, which: Callable[[Child], Sequence[int]], sig: int) -> None:
    """End a child's processes, of those that there are once its stage is at work."""
    wait_for(ready.exists)
    for pid in which(child):
        os.kill(pid, sig)
    list(child.events())
    child.result()


@pytest.mark.parametrize("sandboxed", [True, False])
@pytest.mark.parametrize(("which", "sig"), ENDINGS)
def test_a_stage_that_is_ended_from_outside_is_interrupted(
    box: Sandbox,
    which: Callable[[Child], Sequence[int]],
    sig: int,
    sandboxed: bool,
) -> None:
    ready = box.workdir / "ready"
    with (
        Child(sleeps, str(ready), timeout_s=180, sandbox=box if sandboxed else None) as child,
        pytest.raises(StageInterrupted),
    ):
        ended(child, ready, which, sig)


@pytest.mark.parametrize(
    ("sig", "error"), [(signal.SIGKILL, ChildOutOfMemory), (signal.SIGSEGV, ChildDied)]
)
def test_a_stage_that_crashes_or_is_killed_for_its_memory_has_failed(
    box: Sandbox, sig: int, error: type[FarmError]
) -> None:
    ready = box.workdir / "ready"
    with (
        Child(sleeps, str(ready), timeout_s=180, sandbox=box) as child,
        pytest.raises(error),
    ):
        ended(child, ready, of_job, sig)
