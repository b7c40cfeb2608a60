"""The queues: whatever name is made, the same queue is read from it."""

import pytest

from farm.database.tables import Job
from farm.fleet.workers import Fleet
from farm.machine.gpus import Gpu
from farm.planning import policy, targets
from farm.specs import gpus
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.runtime import Runtime, Target
from workers.runner.names import queues

SLICES = [
    "h200-1g.18gb",
    "a100-1g.10gb+me",
    "h100-1c.3g.40gb",
    "rtx-pro-6000-1g.24gb+me.all",
    "sm_90-1g.18gb",
]
TAGS = [gpus.CPU, *gpus.PRODUCTS, *gpus.COMPUTE_CAPABILITIES, *SLICES]


@pytest.mark.parametrize("runtime", Runtime)
def test_every_queue_and_every_target_is_read_as_it_was_written(runtime):
    for tag in TAGS:
        assert Queue.parse(str(Queue(runtime, tag))) == (runtime, tag)
        assert Target.parse(f"{runtime}:{tag}") == Target(runtime=runtime, gpu=tag)
        assert targets.parse(f"{runtime}:{tag}") == (runtime, tag)


@pytest.mark.parametrize("tag", SLICES)
def test_a_build_for_a_slice_of_a_gpu_waits_for_a_worker_on_such_a_slice(tag, fleet):
    target = Target(runtime=Runtime.TENSORRT, gpu=tag)
    job = Job(state="queued", queue=policy.build_queue(target))
    assert f"a worker with a GPU {tag} and tensorrt installed" in fleet.waits_for(job)


@pytest.mark.parametrize("runtime", [Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME])
def test_a_build_that_needs_no_gpu_waits_for_a_cpu_worker_with_its_runtime(runtime, fleet):
    job = Job(state="queued", queue=f"{runtime}.cpu")
    assert fleet.waits_for(job).startswith(f"a CPU worker with {runtime} ")
    assert fleet.waits_for(Job(state="queued", queue=CPU_QUEUE)).startswith("a CPU worker (")


def test_the_worker_on_a_slice_consumes_the_queue_that_its_builds_wait_in():
    gpu = Gpu(
        uuid="MIG-1",
        name="NVIDIA H200 MIG 1g.18gb",
        compute_capability="sm_90",
        memory_bytes=18 << 30,
        is_slice=True,
    )
    target = Target(runtime=Runtime.TENSORRT, gpu="h200-1g.18gb")
    assert queues(gpu, {"tensorrt": "11.1"}) == (policy.build_queue(target),)


@pytest.fixture
def fleet():
    """Of no workers."""
    from farm.database.base import now

    return Fleet([], ttl_s=60, at=now())
