"""The queues that jobs wait in: their names are made and read here alone."""

from __future__ import annotations

from typing import NamedTuple, Self

from farm.specs import gpus
from farm.specs.runtime import Runtime, Target

CPU_QUEUE = "cpu"  #: of the jobs that any CPU worker can run


class Queue(NamedTuple):
    """The queue of the workers that have a runtime, and a GPU of this tag or ``cpu``."""

    runtime: Runtime
    gpu: str

    def __str__(self) -> str:
        return f"{self.runtime}.{self.gpu}"

    @classmethod
    def of(cls, target: Target) -> Self:
        """Of the workers that can run this target's engines."""
        return cls(target.runtime, target.gpu)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The queue of this name; None for ``cpu``, whose workers need no runtime in particular."""
        if name == CPU_QUEUE:
            return None
        # No runtime has a dot in its name; a slice of a GPU has: tensorrt.h200-1g.18gb.
        runtime, _, gpu = name.partition(".")
        return cls(Runtime(runtime), gpu)

    @property
    def worker(self) -> str:
        """Which worker consumes it."""
        if self.gpu == gpus.CPU:
            return f"a CPU worker with {self.runtime}"
        return f"a worker with a GPU {self.gpu} and {self.runtime} installed"
