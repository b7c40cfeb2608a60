"""What a job's process holds of a GPU is free again when its job, or its worker, is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farm.machine import gpus

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()
needs_gpu = pytest.mark.skipif(not FOUND, reason="no NVIDIA GPU here")
GIB = 1 << 30

WORKER = """
import sys, time
from workers.runner.child import Child
from workers.runner.forks import preload

def hold(_argument, link):
    import torch
    held = torch.empty(8 << 30, dtype=torch.uint8, device="cuda").fill_(1)
    torch.cuda.synchronize()
    print("holds it", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    preload(["torch"])
    with Child(hold, None, timeout_s=600) as child:
        for happening in child.events():
            if "holds it" in getattr(happening, "text", ""):
                print("holds it", flush=True)
                if sys.argv[1] == "cancel":
                    start = time.monotonic()
                    child.end()
                    print(time.monotonic() - start, flush=True)
                    time.sleep(600)
"""


def used(uuid: str) -> int:
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used)


@needs_gpu
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_the_memory_of_a_cancelled_job_and_of_a_killed_worker_is_free_within_seconds(how, tmp_path):
    gpu = FOUND[0].uuid
    before = used(gpu)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    worker = subprocess.Popen(
        [sys.executable, script, how],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        assert "holds it" in worker.stdout.readline()
        if how == "kill":
            assert used(gpu) - before > 7 * GIB
            worker.send_signal(signal.SIGKILL)
        else:
            assert float(worker.stdout.readline()) < 1.0
        deadline = time.monotonic() + 10
        while used(gpu) - before > GIB:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        worker.kill()
        worker.wait()
