"""What calibration made of an engine's graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from farm.reports.base import Report
from farm.reports.histograms import Histograms, TensorHistogram
from farm.reports.search import Search
from farm.specs.counted import counted

#: What a calibration's method is called where the graph came quantised.
AS_IT_CAME = "as it came"
#: Columns of a line, indented, on a terminal of 80.
_LINE = 78


class QuantizationBrief(Report):
    """How an engine was quantised, in a line."""

    method: str | None = Field(None, description="as it was asked for; null if unknown")
    samples: int | None = None
    share: float | None = Field(
        None, description="share of its multiplications in eight bits; null if not counted"
    )
    worst_snr_db: float | None = Field(
        None, description="the lowest signal-to-noise ratio of a quantised tensor"
    )
    worst_tensor: str | None = None
    reason: str | None = Field(None, description="why there is no ratio")

    def told(self, computes_in: str) -> str:
        """``97 % int8 by auto, 512 samples; worst layer 9.0 dB: relu_3``; with a layer, within a line."""
        share = "partly" if self.share is None else f"{self.share * 100:.0f} %"
        said = f"{share} {computes_in}"
        if self.method is not None:
            said += f", {self.method}" if self.method == AS_IT_CAME else f" by {self.method}"
        if self.samples:
            said = f"{said}, {counted(self.samples, 'sample')}"
        if self.worst_snr_db is None:
            return f"{said}; signal to noise {self.reason or 'unknown'}"
        said = f"{said}; worst layer {self.worst_snr_db:.1f} dB: "
        name, room = self.worst_tensor or "?", max(12, _LINE - len(said))
        # The end of a name tells more than its beginning.
        return said + (name if len(name) <= room else f"…{name[1 - room :]}")


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A quantised tensor, and what is known of it."""

    name: str
    snr_db: float | None
    histogram: TensorHistogram | None


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
    snr_reason: str | None = Field(None, description="why there are no ratios")
    left_in_float: dict[str, list[str]] = Field(
        {},
        description="rule → the products that it left in floats, at most 100 each",
        examples=[{"head of a detector": ["/head/conv"]}],
    )
    histograms: Histograms | None = Field(
        None, description="magnitudes of calibrated tensors, and the ranges that methods take"
    )
    histograms_reason: str | None = Field(None, description="why there are no histograms")

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

    @property
    def tensors(self) -> list[Calibrated]:
        """Each tensor of which something is known, the noisiest first."""
        kept = {one.tensor: one for one in self.histograms.tensors} if self.histograms else {}
        ratios = {name: self.snr_db.get(name) for name in (*self.snr_db, *kept)}
        ordered = sorted(ratios, key=lambda name: _last(ratios[name]))
        return [Calibrated(name=n, snr_db=ratios[n], histogram=kept.get(n)) for n in ordered]

    def brief(self, share: float | None) -> QuantizationBrief:
        """Parameters:
        share: of the engine's multiplications in eight bits.
        """
        tensor, ratio = next(iter(self.noisiest(1)), (None, None))
        return QuantizationBrief(
            method=self.method,
            samples=self.samples,
            share=share,
            worst_snr_db=ratio,
            worst_tensor=tensor,
            reason=self.snr_reason,
        )


def _last(ratio: float | None) -> float:
    return float("inf") if ratio is None else ratio
