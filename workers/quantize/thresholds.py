"""Where to clip a tensor's values before they are quantised: methods that choose from one histogram.

A threshold is the magnitude that the largest integer stands for; larger values are clipped to it. All sums
are taken in float64. Within a bin, at most 1/128 wide, values count as evenly spread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workers.quantize.histograms import Floats, Histogram

#: int8, symmetric.
LEVELS = 127
DEFAULT_PERCENTILE = 99.99
#: Rounding errors cancel in a product's sum; those of clipping have one sign, and add up.
CLIPPED = 2.0
#: ``mse``, with the error of clipping counted ``CLIPPED`` times.
MILD = "mild-mse"
#: How far below the maximum a threshold is looked for.
_OCTAVES = 6
#: Thresholds tried in an octave, at first; then the best one's neighbourhood is searched this finely again.
_STEPS, _FINE = 12, 8
#: Thresholds whose errors are computed at once: what they take stays in a core's cache.
_AT_ONCE = 8
#: Bins of equal width for the entropy, how many integers they are merged into, and the candidates' distance.
_LINEAR, _MERGED, _STRIDE = 2048, 128, 16

Threshold = Callable[[Histogram], float]


def maximum(histogram: Histogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return float(histogram.most)


def percentile(histogram: Histogram, percent: float = DEFAULT_PERCENTILE) -> float:
    """The magnitude that this percentage of all values doesn't exceed, by interpolation within its bin."""
    low, high, counts = histogram.bins()
    below = np.cumsum(counts)
    if not below.size:
        return 0.0
    wanted = below[-1] * percent / 100
    at = min(int(np.searchsorted(below, wanted)), below.size - 1)
    share = 1 - (below[at] - wanted) / counts[at]
    return float(low[at] + (high[at] - low[at]) * np.clip(share, 0, 1))


def least_error(histogram: Histogram, clipped: float = 1.0) -> float:
    """The threshold with the least mean squared error of the quantised values.

    Parameters:
        clipped: how often the error of values that are clipped counts.
    """
    most = float(histogram.most)
    if most == 0:
        return 0.0
    tried = most * 2.0 ** -(np.arange(_OCTAVES * _STEPS + 1) / _STEPS)
    best = tried[int(np.argmin(errors(histogram, tried, clipped)))]
    fine = best * 2.0 ** (np.arange(-_FINE, _FINE + 1) / (_FINE * _STEPS))
    fine = np.minimum(fine, most)
    return float(fine[int(np.argmin(errors(histogram, fine, clipped)))])


def entropy(histogram: Histogram) -> float:
    """The threshold that loses the least information, by Kullback and Leibler's divergence.

    As TensorRT's calibrator did it: 2,048 bins of equal width up to the maximum, candidates from the 128th
    on, what is clipped counted in the last bin that is kept, and the kept bins merged into 128.
    Source: Szymon Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    most = float(histogram.most)
    if most == 0:
        return 0.0
    counts = _linear(histogram)
    kept = np.arange(_MERGED, _LINEAR + 1, _STRIDE)
    lost = [_divergence(counts, int(count)) for count in kept]
    # The last of equals: nothing is clipped without a gain.
    best = len(lost) - 1 - int(np.argmin(lost[::-1]))
    return most * float(kept[best]) / _LINEAR


def errors(histogram: Histogram, thresholds: Floats, clipped: float = 1.0) -> Floats:
    """The mean squared error of the values, quantised to int8 with each of these thresholds.

    Parameters:
        clipped: how often the error of values that are clipped counts.
    """
    low, high, counts = histogram.bins()
    if not counts.size:
        return np.zeros(len(thresholds))
    # What every threshold rounds to zero costs its square, whichever is chosen.
    is_zero = high <= thresholds.min() / LEVELS / 2
    small, smaller = high[is_zero], low[is_zero]
    squares = (small**2 + small * smaller + smaller**2) / 3
    lost, all_counts = squares @ counts[is_zero], counts.sum()
    rest = low[~is_zero], high[~is_zero], counts[~is_zero]
    every = np.asarray(thresholds, np.float64)
    spread = [
        _spread(*rest, every[at : at + _AT_ONCE], clipped) for at in range(0, every.size, _AT_ONCE)
    ]
    found: Floats = (np.concatenate(spread) + lost) / all_counts
    return found


def _spread(
    low: Floats, high: Floats, counts: Floats, thresholds: Floats, clipped: float
) -> Floats:
    """The sums of the squared errors of what bins hold."""
    limit = thresholds[:, None]
    step = np.maximum(limit, np.finfo(np.float64).tiny) / LEVELS
    # Rounding up to the threshold, clipping from there on; a bin may have parts on both sides.
    inner, outer = np.minimum(low, limit), np.minimum(high, limit)
    rounded = (_rounding(outer / step) - _rounding(inner / step)) * step**3
    beyond = (np.maximum(high - limit, 0) ** 3 - np.maximum(low - limit, 0) ** 3) / 3 * clipped
    width = high - low
    is_point = width <= 0
    spread = (rounded + beyond) / np.where(is_point, 1, width)
    if is_point.any():
        at = low - np.minimum(np.rint(low / step), LEVELS) * step
        spread = np.where(is_point, at**2, spread)
    found: Floats = spread @ counts
    return found


def chosen(fit: Histogram, held: Histogram, methods: dict[str, Threshold]) -> str:
    """The method whose threshold, taken from ``fit``, errs least on ``held``; the first of equals."""
    found = np.array([method(fit) for method in methods.values()])
    return list(methods)[int(np.argmin(errors(held, found, CLIPPED)))]


def methods(percent: float | None) -> dict[str, Threshold]:
    """The methods that users choose from, by name, the mildest first."""
    share = DEFAULT_PERCENTILE if percent is None else percent
    return {
        "max": maximum,
        "percentile": lambda histogram: percentile(histogram, share),
        "mse": least_error,
        "entropy": entropy,
    }


def candidates(percent: float | None) -> dict[str, Threshold]:
    """What ``auto`` chooses from for a tensor."""
    return methods(percent) | {MILD: lambda histogram: least_error(histogram, CLIPPED)}


def _rounding(ticks: Floats) -> Floats:
    """The integral of the squared distance to the nearest integer, from 0 to each of these."""
    nearest = np.rint(ticks)
    return nearest / 12 + (ticks - nearest) ** 3 / 3


def _linear(histogram: Histogram) -> Floats:
    """The counts over bins of equal width, each of the histogram's bins spread over those it covers."""
    low, high, counts = histogram.bins()
    total = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = np.linspace(0, float(histogram.most), _LINEAR + 1)
    # Between two bins with a gap the sum stays level.
    points = np.stack([low, high], axis=1).reshape(-1)
    sums = np.stack([total[:-1], total[1:]], axis=1).reshape(-1)
    found: Floats = np.diff(np.interp(wanted, points, sums, left=0.0))
    found[0] = found[1]  # zeros, of which a Relu gives many, are exact at every threshold
    return found


def _divergence(counts: Floats, kept: int) -> float:
    reference = counts[:kept].copy()
    is_there = reference > 0
    starts = np.arange(_MERGED) * kept // _MERGED
    sums = np.add.reduceat(reference, starts)
    sizes = np.add.reduceat(is_there.astype(np.float64), starts)
    level = np.repeat(sums / np.maximum(sizes, 1), np.diff(np.append(starts, kept)))
    reference[-1] += counts[kept:].sum()
    candidate = np.where(is_there, level, 0)
    if candidate.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    seen = p > 0
    # What was clipped may lie where nothing is kept; a little mass there keeps the sum finite.
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))
