"""A GPU job in its sandbox has CUDA, and no more than other jobs of anything else."""

from __future__ import annotations

import pytest

from farm.machine import gpus
from workers.runner.child import Child
from workers.runner.inside import FOUND
from workers.sandbox import Limits, Sandbox

pytestmark = pytest.mark.gpu
GPUS = gpus.discover()


def multiplies(other, _link):
    import torch

    ones = torch.ones(512, 512, device="cuda")
    pinned = torch.empty(1 << 20, dtype=torch.uint8, pin_memory=True)
    try:
        open(other).close()
        reads = True
    except PermissionError:
        reads = False
    enforced = {one.feature.value: one.enforced for one in FOUND}
    return {
        "sum": (ones @ ones).sum().item(),
        "pinned": pinned.is_pinned(),
        "reads": reads,
        "enforced": enforced,
    }


@pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU here")
def test_cuda_works_in_a_sandbox_that_is_as_tight_as_any(tmp_path):
    other, workdir = tmp_path / "other", tmp_path / "work"
    other.write_text("somebody else's")
    workdir.mkdir()
    limits = Limits.of_machine(workdir, slots=1, timeout_s=120)
    box = Sandbox(workdir=workdir, reads=(), limits=limits, gpu=True)
    with Child(multiplies, str(other), timeout_s=120, sandbox=box) as child:
        made = child.wait()
    assert made["sum"] == 512.0**3
    assert made["pinned"]
    assert made["reads"] is not made["enforced"]["files"]
