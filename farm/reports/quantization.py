"""What calibration made of an engine's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from farm.reports.base import Report
from farm.reports.search import Search


class Quantization(Report):
    """How a quantised engine's graph was calibrated, and what is left of its layers."""

    precision: str | None = None
    method: str | None = Field(None, description="as it was asked for")
    samples: int | None = None
    chosen: dict[str, int] = Field(
        {}, description="method → quantised tensors, or groups of them, whose scale it gave"
    )
    qdq_pairs: int | None = None
    snr_db: dict[str, float] = Field(
        {},
        description="quantised tensor → its signal-to-noise ratio in dB beside the unquantised graph, on "
        "samples held out where the method chooses by them; at most 200, the noisiest",
        examples=[{"relu_3": 31.4}],
    )
    left_in_float: dict[str, list[str]] = Field(
        {},
        description="rule → the products that it left in floats, at most 100 each",
        examples=[{"head of a detector": ["/head/conv"]}],
    )

    search: Search | None = Field(
        None, description="what was tried to keep the evaluation's `max_drop`, if the build has one"
    )

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Quantization:
        """Of a calibration's facts. Earlier versions stored anything a stage sent.

        Raises:
            ValidationError
        """
        return cls.model_validate(facts)

    def noisiest(self, most: int) -> list[tuple[str, float]]:
        return sorted(self.snr_db.items(), key=lambda one: one[1])[:most]
