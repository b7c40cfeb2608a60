"""A worker's name and queues. Imports little, since the supervisor uses it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from farm.machine.gpus import Gpu
from farm.specs import gpus
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.runtime import Runtime
from workers.runner import toolchain


def queues(gpu: Gpu | None, runtimes: Mapping[str, str]) -> tuple[str, ...]:
    """The queues a worker consumes: each of its runtimes × each of its tags."""
    if gpu is not None:
        there = [r for r in runtimes if r != Runtime.ONNXRUNTIME or toolchain.has_cuda_provider()]
        there = [runtime for runtime in there if runtime != Runtime.TORCHSCRIPT]
        return tuple(str(Queue(Runtime(runtime), tag)) for runtime in there for tag in gpu.tags)
    # TensorRT needs a GPU to build; the others don't.
    there = [runtime for runtime in runtimes if runtime != Runtime.TENSORRT]
    return (CPU_QUEUE, *(str(Queue(Runtime(runtime), gpus.CPU)) for runtime in there))


def default_name(gpu: Gpu | None, index: int) -> str:
    """``cpu@host`` or ``gpu0@host``; ``FARM_WORKER_HOST`` stands in for the host's name."""
    host = os.environ.get("FARM_WORKER_HOST") or socket.gethostname()
    return f"{'cpu' if gpu is None else f'gpu{index}'}@{host}"
