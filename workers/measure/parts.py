"""Compares the parts of an output, such as its channels, each by its own scale.

Where boxes in pixels and scores up to 1 are one output, its error is that of the boxes: an engine whose
scores are all zero resembles its source. Therefore each part along a short axis is looked at alone. It is
lost if it varies in the source and the engine's differs by as much as it varies, so that a constant would do
as well. Rounding may do that to a part that is small beside the noise that all of them have: one that isn't
constant counts only if that noise is small beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

#: Axes longer than this are positions or classes of their own, and a part may have a value a sample.
_MOST_PARTS = 512
#: What a part must have for its variation to be worth keeping: as many values that stand out, a range of
#: this share of its largest magnitude, and a magnitude above what fp16 flushes to zero.
_VALUES = 8
_RANGE = 0.1
_MAGNITUDE = 1e-3
#: Below this share of the source's standard deviation an engine's part counts as constant.
_CONSTANT = 0.05
#: A part that varies this many times as much as the error of those that aren't lost isn't small beside it.
_LOUD = 2.0


@dataclass(frozen=True, kw_only=True)
class Lost:
    """How many of an output's parts along an axis vary in the source, and how many of those are lost."""

    axis: int
    varying: int
    lost: int


@dataclass(kw_only=True)
class Parts:
    """Accumulates one output's parts over all batches, along the first and the last axis of a sample."""

    _axes: dict[int, _Along | None] = field(default_factory=dict)

    def add(
        self, expected: NDArray[np.generic], actual: NDArray[np.generic], batch_axis: int | None
    ) -> None:
        """Add a batch of floats, both of the same shape; what isn't finite in both is left out as zero."""
        source, engine = expected.astype(np.float64), actual.astype(np.float64)
        both = np.isfinite(source) & np.isfinite(engine)
        source[~both] = engine[~both] = 0.0
        axes = [axis for axis in range(expected.ndim) if axis != batch_axis]
        for axis in {*axes[:1], *axes[-1:]}:
            parts = expected.shape[axis]
            known = self._axes.setdefault(
                axis, _Along(parts) if 2 <= parts <= _MOST_PARTS else None
            )
            if known is None:
                continue
            if known.parts != parts:  # its size depends on the data, so no part is the same in all
                self._axes[axis] = None
                continue
            known.add(*(np.moveaxis(one, axis, 0).reshape(parts, -1) for one in (source, engine)))

    def found(self) -> Lost | None:
        """The axis along which the greatest share is lost; None without parts that vary."""
        found = [along.found(axis) for axis, along in sorted(self._axes.items()) if along]
        return max(
            (one for one in found if one.varying),
            key=lambda one: one.lost / one.varying,
            default=None,
        )


class _Along:
    """Sums for each part along one axis."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._count = 0
        #: of the source: sum, squares, fourth powers; of the engine: sum, squares; squares of the error
        self._sums = np.zeros((6, parts))
        self._low, self._high = np.full(parts, np.inf), np.full(parts, -np.inf)

    def add(self, source: Values, engine: Values) -> None:
        """Add values [parts, any number]."""
        if not source.size:
            return
        self._count += source.shape[1]
        squares = source**2
        self._sums += [
            *(source.sum(axis=1), squares.sum(axis=1), (squares**2).sum(axis=1)),
            *(engine.sum(axis=1), (engine**2).sum(axis=1), ((engine - source) ** 2).sum(axis=1)),
        ]
        self._low = np.minimum(self._low, source.min(axis=1))
        self._high = np.maximum(self._high, source.max(axis=1))

    def found(self, axis: int) -> Lost:
        total, squares, fourths, of_engine, squares_of_engine, errors = self._sums
        count = max(self._count, 1)
        spread = squares / count - (total / count) ** 2
        left = squares_of_engine / count - (of_engine / count) ** 2
        largest = np.maximum(np.abs(self._low), np.abs(self._high))
        stand_out = np.divide(squares**2, fourths, out=np.zeros(self.parts), where=fourths > 0)
        varies = (
            (stand_out >= _VALUES)
            & (largest >= _MAGNITUDE)
            & (self._high - self._low >= _RANGE * largest)
        )
        error = errors / count
        unlike = error >= spread
        noise = error[~unlike].mean() if not unlike.all() else 0.0
        constant = left <= _CONSTANT**2 * spread
        lost = varies & unlike & (constant | (spread >= _LOUD**2 * noise))
        return Lost(axis=axis, varying=int(varies.sum()), lost=int(lost.sum()))
