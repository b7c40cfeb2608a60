"""What a job will take, as told by its like that have run. Pure, no I/O.

Like jobs are of the same kind, runtime and precision. Of these, the nearest count: by the source's size on a
log scale, and a job for another GPU is as far away as one of a source of twice the size. Further than a
factor of ``FURTHEST`` none says anything: the answer is unknown then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST = 12  #: like jobs that count
FURTHEST = 8.0  #: largest ratio of the sources' sizes
#: Fewer jobs than this tell no range.
_LEAST_FOR_RANGE = 3
_OTHER_TARGET = math.log(2)
#: Distance within which jobs count alike: versions of a model differ by a little.
_ALIKE = math.log(1.05)


@dataclass(frozen=True, kw_only=True)
class Past:
    """A job that has run."""

    id: int
    source_bytes: int
    target: str | None
    took_s: float
    peak_memory_bytes: int | None


class Range(NamedTuple):
    """Quantiles: the median, and the 10th and 90th percentile if enough jobs tell them."""

    expected: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a job will take."""

    jobs: int  #: how many like jobs this rests on
    took_s: Range
    peak_memory_bytes: Range | None  #: None if none of them recorded it


class _Weighed(NamedTuple):
    value: float
    weight: float


def forecast(source_bytes: int, target: str | None, past: Iterable[Past]) -> Forecast | None:
    """What a job will take, or None if no job is like it.

    Parameters:
        past: jobs of the same kind, runtime and precision.
    """
    measured = [(_distance(source_bytes, target, one), one) for one in past]
    near = [(distance, one) for distance, one in measured if distance is not None]
    # Of those that are as near, the newest.
    near = sorted(near, key=lambda pair: (pair[0], -pair[1].id))[:MOST]
    if not near:
        return None
    weighed = [(1 / (_ALIKE + distance), one) for distance, one in near]
    peaks = [
        _Weighed(one.peak_memory_bytes, weight)
        for weight, one in weighed
        if one.peak_memory_bytes is not None
    ]
    return Forecast(
        jobs=len(near),
        took_s=_range([_Weighed(one.took_s, weight) for weight, one in weighed]),
        peak_memory_bytes=_range(peaks) if peaks else None,
    )


def _distance(source_bytes: int, target: str | None, past: Past) -> float | None:
    """How unlike a job is; None if too far to count."""
    ratio = abs(math.log(max(source_bytes, 1) / max(past.source_bytes, 1)))
    if ratio > math.log(FURTHEST):
        return None
    return ratio + (_OTHER_TARGET if past.target != target else 0)


def _range(values: Sequence[_Weighed]) -> Range:
    """The median weighs near jobs more. The range counts all alike: of a few near ones it would be too
    narrow."""
    ordered = sorted(values)
    expected = _quantile(ordered, 0.5)
    if len(ordered) < _LEAST_FOR_RANGE:
        return Range(expected)
    alike = [_Weighed(one.value, 1.0) for one in ordered]
    return Range(
        expected, min(expected, _quantile(alike, 0.1)), max(expected, _quantile(alike, 0.9))
    )


def _quantile(ordered: Sequence[_Weighed], share: float) -> float:
    """A weighted quantile: each value is at the middle of its weight, and between two it is interpolated."""
    total, below = sum(one.weight for one in ordered), 0.0
    value_before, at_before = ordered[0].value, 0.0
    for value, weight in ordered:
        at = (below + weight / 2) / total
        if at >= share:
            return value_before + (value - value_before) * (share - at_before) / (at - at_before)
        value_before, at_before = value, at
        below += weight
    return value_before
