"""Histograms of magnitudes whose bins are the same for every tensor, so that counts add up exactly.

A bin is the upper half of a float32 without its sign: eight bits of exponent and seven of mantissa. That is
128 bins from one power of two to the next, each at most 1/128 as wide as the values in it. No range has to
be known, and none grows: a histogram depends only on which values there were, not on their order, nor on how
they fell into batches.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Extremes = tuple[np.float32, np.float32]

BINS = 1 << 15
_FINITE = 0x7F80  #: the first bin of infinities and NaN
_UPPER = int(sys.byteorder == "little")  #: which half of a float32 is the upper one
#: Values counted at once, whose bins are then still in the processor's cache.
_CHUNK = 1 << 21


@dataclass(kw_only=True, eq=False)
class Histogram:
    """Values of a tensor: their exact minimum and maximum, and counts of their magnitudes.

    Infinities and NaN are counted apart: a range can't hold them.
    """

    lowest: np.float32 = field(default_factory=lambda: np.float32(np.inf))
    highest: np.float32 = field(default_factory=lambda: np.float32(-np.inf))
    counts: Counts | None = None  #: by bin; None where only the extremes were asked for
    not_finite: int = 0

    @classmethod
    def empty(cls, *, counted: bool) -> Histogram:
        return cls(counts=np.zeros(BINS, np.int64) if counted else None)

    def add(self, values: NDArray[np.float32], extremes: Extremes | None = None) -> None:
        """Count the values of an array of any shape.

        Parameters:
            extremes: their minimum and maximum, where these are known.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        lowest, highest = extremes or (flat.min(), flat.max())
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            finite = flat[np.isfinite(flat)]
            self.not_finite += flat.size - finite.size
            lowest = finite.min(initial=np.float32(np.inf))
            highest = finite.max(initial=np.float32(-np.inf))
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        if self.counts is not None:
            for start in range(0, flat.size, _CHUNK):
                self.counts += _counted(flat[start : start + _CHUNK])
            self.counts[_FINITE:] = 0

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        both = self.counts is not None and other.counts is not None
        return Histogram(
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
            counts=self.counts + other.counts if both else None,  # type: ignore[operator]
            not_finite=self.not_finite + other.not_finite,
        )

    @property
    def most(self) -> np.float32:
        """The largest finite magnitude; 0 without values."""
        return (
            max(np.float32(0), abs(self.lowest), abs(self.highest)) if self.total else np.float32(0)
        )

    @property
    def total(self) -> bool:
        """Whether there was any finite value."""
        return bool(self.lowest <= self.highest)

    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Lower edge, upper edge and count of each bin that holds values, upwards.

        The last upper edge is the exact maximum.
        """
        assert self.counts is not None
        index = np.flatnonzero(self.counts)
        low, high = edges(index), edges(index + 1)
        if high.size:
            high[-1] = max(float(self.most), low[-1])
        return low, high, self.counts[index].astype(np.float64)


def edges(index: NDArray[np.integer]) -> Floats:
    """The lower edges of bins."""
    bits = np.asarray(index).astype(np.uint32) << np.uint32(16)
    found = bits.view(np.float32).astype(np.float64)
    return np.where(np.isfinite(found), found, 2.0**128)


def _counted(flat: NDArray[np.float32]) -> Counts:
    upper = flat.view(np.uint16)[_UPPER::2] & np.uint16(0x7FFF)
    # NumPy would widen every index to 64 bits first.
    return torch.bincount(torch.from_numpy(upper.view(np.int16)), minlength=BINS).numpy()
