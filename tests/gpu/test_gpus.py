"""GPUs as NVML tells them, and pinning. Skipped where there is no driver."""

import os
import re
import subprocess
import sys

import pytest

from farm.machine import gpus
from farm.machine.load import gpu_load

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()

needs_gpu = pytest.mark.skipif(not FOUND, reason="no NVIDIA GPU here")


@needs_gpu
def test_every_gpu_has_a_uuid_of_its_own_and_its_tags():
    assert len({gpu.uuid for gpu in FOUND}) == len(FOUND)
    for gpu in FOUND:
        assert gpu.uuid.startswith("GPU-")
        assert re.fullmatch(r"sm_\d{2,3}", gpu.compute_capability)
        assert gpu.tags[0] == gpu.compute_capability
        assert gpu.memory_bytes > 1 << 30
        print(gpu, gpu.tags)


@needs_gpu
@pytest.mark.parametrize("gpu", FOUND, ids=lambda gpu: gpu.uuid)
def test_a_gpu_tells_its_load(gpu):
    load = gpu_load(gpu.uuid)
    assert load.memory_bytes == gpu.memory_bytes
    assert 0 < load.memory_used_bytes <= load.memory_bytes
    if not gpu.is_slice:
        assert 0 <= load.utilization <= 1
        assert 1 < load.power_w < 2000
        assert 0 < load.temperature_c < 120
    print(load)


@needs_gpu
@pytest.mark.parametrize("gpu", FOUND, ids=lambda gpu: gpu.uuid)
def test_a_process_pinned_by_uuid_sees_exactly_its_gpu(gpu):
    code = (
        "import torch; properties = torch.cuda.get_device_properties(0);"
        "print(torch.cuda.device_count(), f'GPU-{properties.uuid}')"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["1", gpu.uuid]


def test_looking_for_gpus_without_a_driver_finds_none():
    """On any machine: a driver that can't be loaded is no error."""
    code = (
        "import pynvml\n"
        "def refuse(): raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)\n"
        "pynvml.nvmlInit = refuse\n"
        "from farm.machine import gpus; print(gpus.discover())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
