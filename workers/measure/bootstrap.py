"""Percentile bootstrap over samples: 95 % intervals of a metric, and of its change from source to engine.

Each sample contributes a row of sums, and the metric is a function of the rows' total; a resample is then one
matrix product. Source and engine are resampled together, since they saw the same samples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from workers.measure.intervals import Interval

Rows = NDArray[np.float64]
#: Weights of the samples, [resamples, samples] → the metric of each resample.
Resampled = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RESAMPLES = 1000
_SEED = 0
_ENDS = (2.5, 97.5)
#: Weights drawn at once.
_MOST_VALUES = 4_000_000


def intervals(
    count: int, source: Resampled, engine: Resampled, *, resamples: int = RESAMPLES
) -> tuple[Interval, Interval, Interval] | None:
    """The intervals of the source's figure, the engine's, and of the engine's minus the source's.

    None for a single sample, which says nothing about others.
    """
    if count < 2:
        return None
    found = [(source(weights), engine(weights)) for weights in _weights(count, resamples)]
    before, after = (np.concatenate(each) for each in zip(*found, strict=True))
    kept = np.isfinite(before) & np.isfinite(after)
    if not kept.any():
        return None
    before, after = before[kept], after[kept]
    return _ends(before), _ends(after), _ends(after - before)


def _weights(count: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    random = np.random.default_rng(_SEED)
    step = max(1, _MOST_VALUES // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield random.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _ends(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, _ENDS)
    return [float(low), float(high)]
