"""What the best of a model's engines is best at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.specs.values import Value
from farm.specs.words import Folded

BatchSize = Annotated[int, Field(ge=1, le=2**20)]


class Aim(Folded):
    LATENCY = "latency"  #: the lowest median latency
    THROUGHPUT = "throughput"  #: the most samples per second


class Goal(Value):
    """What engines are ranked by."""

    aim: Aim = Aim.LATENCY
    batch: BatchSize | None = None  #: by default the profile's opt, or for throughput any

    def __str__(self) -> str:
        if self.batch is not None:
            return f"{self.aim} at batch {self.batch}"
        at = "the profile's opt batch" if self.aim is Aim.LATENCY else "any batch"
        return f"{self.aim} at {at}"
