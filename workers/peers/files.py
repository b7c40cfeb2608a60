"""The two files between the measure stage and the process that times PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from farm.reports.metrics import Timed
from farm.reports.records import OpenRecord, Word
from farm.specs.precision import Precision
from farm.stages import MeasureParams

#: Of an answer: a few figures.
MAX_BYTES = 2**20


class PeersRequest(BaseModel):
    """What to time, and where to write the answer."""

    source: Path
    params: MeasureParams
    arrays: Path  #: one batch, as ``.npz``; its arrays are in the order of ``inputs``
    inputs: list[str]
    batch: int
    precision: Precision  #: PyTorch's
    warmup_s: float
    duration_s: float
    min_iterations: int
    max_s: float
    uuid: str
    beside: int  #: processes of this job on the GPU, this one not included
    answer: Path


class PeersAnswer(OpenRecord):
    """The figures so far. Rewritten as a whole after each, since the process may die at the next."""

    doing: Word | None = None  #: which figure is being taken; None at the end
    peers: Annotated[dict[Word, Timed], Field(max_length=20)] = {}

    @property
    def is_complete(self) -> bool:
        """Whether PyTorch has run to the end, with every figure but those that it can't give."""
        best = self.peers.get("compiled_cuda_graph")
        return self.doing is None and best is not None and best.p50_ms is not None

    def write(self, path: Path) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(self.model_dump_json())
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> PeersAnswer | None:
        """The answer, or None if there is none yet.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return cls.model_validate_json(data)
