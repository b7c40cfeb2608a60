"""What calibration saw of each tensor: a small histogram, the range taken, and what other methods take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.reports.records import Count, Number, Record, Share, Word
from farm.reports.shown import share

#: Tensors kept, the noisiest first: a hostile model may have any number.
MOST_TENSORS = 100
#: Bins of equal width, from 0 to the largest magnitude.
BINS = 128
MAX_BYTES = 2**20
#: A share that rounds to more than zero.
_SEEN = 5e-6

TensorName = Annotated[str, Field(max_length=200)]


class TensorHistogram(Record):
    """The magnitudes of a quantised tensor's values over the calibration data."""

    tensor: TensorName
    sharing: Count = Field(0, description="how many other tensors share its scale, counted in here")
    largest: Annotated[Number, Field(ge=0)] = Field(description="magnitude, of finite values")
    counts: Annotated[list[Count], Field(max_length=BINS)] = Field(
        [],
        description="values by magnitude, in bins of equal width from 0 to the largest; empty if the "
        "method looks at extremes alone",
    )
    range: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="largest magnitude that isn't clipped; null if it stayed in floats"
    )
    method: Word | None = Field(None, description="what gave the range")
    ranges: Annotated[dict[Word, Annotated[Number, Field(ge=0)]], Field(max_length=16)] = Field(
        {}, description="method → the range that it takes"
    )

    @property
    def taken(self) -> str:
        """``4.07 by mse``, or ``in floats``."""
        if self.range is None:
            return "in floats"
        return f"{self.range:.4g} by {self.method}" if self.method else f"{self.range:.4g}"

    @property
    def told(self) -> str:
        """``Magnitudes to 5.35; range 4.07 by mse, which clips 0.010 % of them; by other methods …``."""
        clips = ""
        if self.clipped is not None:
            told = "none" if self.clipped < _SEEN else share(self.clipped, 3)
            clips = f", which clips {told} of them"
        taken = f"it stays {self.taken}" if self.range is None else f"range {self.taken}{clips}"
        others = ", ".join(
            f"{name} {value:.4g}" for name, value in self.ranges.items() if name != self.method
        )
        rest = f"; by other methods {others}" if others else ""
        shared = f"; {self.sharing} more tensors share its scale" if self.sharing else ""
        return f"Magnitudes to {self.largest:.4g}; {taken}{rest}{shared}"

    @property
    def clipped(self) -> Share | None:
        """The share of values beyond the range, by bins; None if it is unknown."""
        total = sum(self.counts)
        if not total or self.range is None or not self.largest:
            return None
        at = self.range / self.largest * len(self.counts)
        if at >= len(self.counts):
            return 0.0
        beyond = sum(self.counts[int(at) + 1 :]) + self.counts[int(at)] * (int(at) + 1 - at)
        return min(1.0, beyond / total)


class Histograms(Record):
    """A calibration's histograms: a file of its own, since builds show the other facts."""

    tensors: Annotated[list[TensorHistogram], Field(max_length=MOST_TENSORS)] = []
    left_out: Count = Field(0, description="quantised tensors, or groups of them, that aren't kept")
