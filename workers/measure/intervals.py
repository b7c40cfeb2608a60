"""95 % confidence intervals of figures from a limited number of samples."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

#: Lower and upper bound.
Interval = list[float]

#: Standard deviations on either side that cover 95 % of a normal distribution.
_Z = 1.96


def of_share(share: float, samples: int) -> Interval:
    """The interval of a share, 0 to 1, of this many samples.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927. For a mean
    of values in 0 to 1 it is at least as wide as their own interval.
    """
    spread = _Z**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def of_mean(values: NDArray[np.float64]) -> Interval | None:
    """The interval of a mean, from its standard error; None for a single value."""
    if len(values) < 2:
        return None
    half = _Z * float(values.std(ddof=1)) / sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]
