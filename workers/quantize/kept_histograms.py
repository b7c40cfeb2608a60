"""What is kept of a calibration's histograms: few bins of equal width, and the ranges that methods take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from farm.reports.histograms import BINS, MOST_TENSORS, Histograms, TensorHistogram
from farm.specs.precision import Precision
from workers.quantize import placement, thresholds
from workers.quantize.histograms import Histogram

_NAME_LENGTH = 200
#: Methods whose ranges are kept without being asked for: the others take a tenth of a second a tensor.
_QUICK = ("max", "percentile", "entropy")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A group of tensors that share a scale."""

    group: tuple[str, ...]
    method: str  #: what gave its range
    limit: float
    largest: float
    limits: Mapping[str, float]  #: method → the range that it takes
    counts: Sequence[int]


def kept(
    groups: Sequence[tuple[str, ...]],
    histograms: Sequence[Histogram],
    limits: Mapping[str, Sequence[float]],
    taken: Sequence[float],
    methods: Sequence[str],
    percentile: float | None,
) -> list[Kept]:
    """Groups' histograms, small.

    Parameters:
        limits: method → each group's range by it, as far as they are known.
        taken: each group's range, and what gave it in ``methods``.
    """
    quick = {n: m for n, m in thresholds.methods(percentile).items() if n in _QUICK}
    found = []
    for at, (group, seen) in enumerate(zip(groups, histograms, strict=True)):
        of = {name: values[at] for name, values in limits.items()} | {methods[at]: taken[at]}
        if seen.counts is not None:
            of = {name: method(seen) for name, method in quick.items() if name not in of} | of
        found.append(
            Kept(
                group=group,
                method=methods[at],
                limit=taken[at],
                largest=float(seen.most),
                limits=of,
                counts=binned(seen),
            )
        )
    return found


def binned(histogram: Histogram) -> list[int]:
    """Counts in bins of equal width from 0 to the largest magnitude, whose sum is that of all counts."""
    if histogram.counts is None or not histogram.most:
        return []
    low, high, counts = histogram.bins()
    total = np.concatenate([[0.0], np.cumsum(counts)])
    points = np.stack([low, high], axis=1).reshape(-1)
    sums = np.stack([total[:-1], total[1:]], axis=1).reshape(-1)
    ends = np.linspace(0, float(histogram.most), BINS + 1)[1:]
    until = np.rint(np.interp(ends, points, sums, left=0.0)).astype(np.int64)
    until[-1] = int(total[-1])
    return [int(count) for count in np.diff(until, prepend=0)]


def recorded(
    found: Iterable[Kept],
    quantized: onnx.ModelProto,
    snr_db: Mapping[str, float],
    precision: Precision,
) -> Histograms:
    """As they are stored: the noisiest tensors first, with the ranges that the finished graph has."""
    scales = placement.scales_of(quantized)

    def noise(one: Kept) -> float:
        ratios = [snr_db[name] for name in one.group if name in snr_db]
        return min(ratios, default=np.inf)

    ordered = sorted(found, key=noise)
    return Histograms(
        tensors=[_recorded(one, scales, precision) for one in ordered[:MOST_TENSORS]],
        left_out=max(0, len(ordered) - MOST_TENSORS),
    )


def _recorded(one: Kept, scales: Mapping[str, float], precision: Precision) -> TensorHistogram:
    there = next((scales[name] for name in one.group if name in scales), None)
    return TensorHistogram(
        tensor=one.group[0][:_NAME_LENGTH],
        sharing=len(one.group) - 1,
        largest=one.largest,
        counts=list(one.counts),
        range=None if there is None else placement.largest_of(there, precision),
        method=one.method,
        ranges=dict(one.limits),
    )
