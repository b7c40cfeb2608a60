"""Job queues. Their names are only formatted and parsed here."""

from __future__ import annotations

from typing import NamedTuple, Self

from farm.specs import gpus
from farm.specs.runtime import Runtime, Target

CPU_QUEUE = "cpu"  #: for jobs that any CPU worker can run


def takes_gpu(name: str) -> bool:
    """Whether the jobs of a queue take a GPU."""
    return name != CPU_QUEUE and not name.endswith(f".{gpus.CPU}")


class Queue(NamedTuple):
    """The queue for workers with this runtime and a GPU with this tag, or ``cpu``."""

    runtime: Runtime
    gpu: str

    def __str__(self) -> str:
        return f"{self.runtime}.{self.gpu}"

    @classmethod
    def of(cls, target: Target) -> Self:
        """The queue for workers that can run this target's engines."""
        return cls(target.runtime, target.gpu)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Parse a queue's name; None for ``cpu``, whose workers need no particular runtime."""
        if name == CPU_QUEUE:
            return None
        # Runtimes have no dot in their names, GPU slices do: tensorrt.h200-1g.18gb.
        runtime, _, gpu = name.partition(".")
        return cls(Runtime(runtime), gpu)

    @property
    def worker(self) -> str:
        """The worker that consumes it, in words."""
        if self.gpu == gpus.CPU:
            return f"a CPU worker with {self.runtime}"
        return f"a worker with a GPU {self.gpu} and {self.runtime} installed"
