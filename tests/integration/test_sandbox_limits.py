"""A job that takes too much of the machine ends alone."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest

from farm.errors import ChildFilledDisk, ChildOutOfMemory, StageFault
from farm.settings import Settings
from tests.sandboxed import printed, run
from workers.runner.child import Child
from workers.sandbox import Feature, Limits
from workers.sandbox import settings as sandbox_settings


def takes_memory(how, _link):
    if how == "at once":
        return len(bytearray(1 << 45))
    if how == "numpy":
        import numpy

        return int(numpy.zeros(1 << 45, dtype=numpy.int8).size)
    held = []
    while True:
        held.append(b"x" * (1 << 22))
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["at once", "numpy", "bit by bit"])
def test_a_job_that_takes_too_much_memory_ends_alone_and_is_told_what_to_do(box, how):
    small = replace(box, limits=replace(box.limits, memory_bytes=700 * 2**20))
    with pytest.raises(ChildOutOfMemory) as caught:
        run(takes_memory, how, small)
    assert "FARM_JOB_MEMORY_BYTES" in caught.value.hint


def fills_the_disk(how, _link):
    if how == "one file":
        with open("big", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
    number = 0
    while True:
        number += 1
        Path(f"f{number}").write_bytes(b"x" * (1 << 20))


#: Of one file, the kernel and the guard take notice: on a slow machine the guard may be first.
@pytest.mark.parametrize(
    ("how", "error"),
    [("one file", (StageFault, ChildFilledDisk)), ("many", ChildFilledDisk)],
)
def test_a_job_that_fills_the_disk_is_ended(box, how, error):
    small = replace(box, limits=replace(box.limits, disk_bytes=20 * 2**20))
    with pytest.raises(error):
        run(fills_the_disk, how, small)
    used = sum(file.stat().st_size for file in box.workdir.rglob("*") if file.is_file())
    assert used < 4 * 2**30


def writes_far_behind_the_end(_argument, _link):
    """A large file, of which there is nothing on the disk yet that the guard could count."""
    with open("big", "wb") as file:
        file.seek(20 * 2**20)
        file.write(b"x")


def test_the_kernel_keeps_a_jobs_file_from_exceeding_its_disk(box):
    small = replace(box, limits=replace(box.limits, disk_bytes=20 * 2**20))
    with pytest.raises(StageFault, match="File too large"):
        run(writes_far_behind_the_end, None, small)


def forks_without_end(_argument, _link):
    made = 0
    while True:
        try:
            pid = os.fork()
        except OSError as err:
            return [made, type(err).__name__]
        if pid == 0:
            time.sleep(600)
        made += 1


def test_a_fork_bomb_ends_at_the_limit_of_processes(box, needs):
    needs(Feature.PROCESSES)
    few = replace(box, limits=replace(box.limits, processes=400))
    (made, error), _ = run(forks_without_end, None, few)
    assert made < 400
    assert error == "BlockingIOError"


def is_limited(_argument, _link):
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "cpu": resource.getrlimit(resource.RLIMIT_CPU)[1],
        "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def test_a_job_leaves_no_core_and_is_what_the_kernel_ends_first(box):
    has, _ = run(is_limited, None, box)
    assert (has["core"], has["oom"]) == (0, "1000")
    assert 0 < has["files"] <= 4096
    assert 0 < has["cpu"] <= 60 * (os.cpu_count() or 1) + 1


def prints_without_end(_argument, _link):
    line = b"y" * 79 + b"\n"
    for _ in range(1 << 16):
        os.write(1, line * 16)
    print("the end of it")


def test_what_a_job_prints_is_cut_and_the_log_says_so_and_keeps_the_end(box):
    with Child(prints_without_end, None, timeout_s=120, sandbox=box, log_bytes=1 << 16) as child:
        text = printed(child.events())
    assert len(text) < (1 << 16) + 500
    assert "[log truncated" in text
    assert text.endswith("the end of it\n")


def test_limits_are_a_share_of_the_machine(tmp_path):
    one = Limits.of_machine(tmp_path, slots=1, timeout_s=60)
    two = Limits.of_machine(tmp_path, slots=2, timeout_s=60)
    assert one.memory_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert abs(two.memory_bytes * 2 - one.memory_bytes) <= 2
    settings = Settings(home=tmp_path, job_memory_bytes=2**30, job_disk_bytes=2**20)
    box = sandbox_settings.sandbox_of(settings, tmp_path, (), is_gpu=False, timeout_s=60)
    assert (box.limits.memory_bytes, box.limits.disk_bytes) == (2**30, 2**20)
