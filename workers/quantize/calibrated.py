"""Calibrates: chooses the scales of a Q/DQ graph's activations from samples.

``auto`` chooses for each tensor between the methods. They take their thresholds from three quarters of the
samples; the one with the least error on the last quarter takes its threshold from all of them. This mix then
competes with ``max``, ``mse``, ``entropy`` and the middle between itself and ``max``, by the graph's outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.specs.precision import Precision
from workers.backends.ort.cpu import cpu_threads
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations, extremes, placement, thresholds, trials
from workers.quantize.activations import Statistics
from workers.quantize.histograms import Histogram
from workers.quantize.kept_histograms import Kept, kept
from workers.quantize.peaks import Peaks

Rows = NDArray[np.bool_]

#: Held-out samples on which whole graphs are compared.
_TRIED = 16
_MIX, _MIDDLE = "mix", "middle"
#: Methods that are also tried for every tensor alike.
_EVERYWHERE = ("max", "mse", "entropy")
#: Samples of either part whose values are the largest.
_EXTREME = (12, 4)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a graph's activations were calibrated."""

    samples: int
    batches: int
    chosen: dict[str, int]  #: method → tensors, or groups of them, whose scale it gave
    not_finite: dict[str, int]  #: tensor → infinite and NaN values, which no range holds
    largest: dict[
        str, float
    ]  #: tensor → its largest magnitude over all samples; infinite if any value is
    extreme: NDArray[np.intp]  #: a few samples that hold the largest values of the most tensors
    kept: list[Kept]  #: of each group of tensors, what is recorded


def calibrate(
    quantized: onnx.ModelProto,
    samples: Arrays,
    batch: Batch,
    *,
    size: int,
    method: str,
    percentile: float | None,
    precision: Precision,
    folder: Path,
    seen: Callable[[int], None],
) -> Calibration:
    """Give the graph's activations scales from the samples.

    Parameters:
        quantized: as ModelOpt wrote it.
        size: of a batch.
        method: ``auto``, or one of ``thresholds.methods``.
        seen: is told the number of samples after each batch.
    """
    where = placement.placed(quantized)
    method = _method(method, precision)
    count = batch.count(samples)
    is_held = activations.held_out(count, batch.min) & (method == "auto")
    told = _Told(batch, seen)

    def batches(which: Rows) -> Iterator[Arrays]:
        return activations.batches_of(samples, batch, size, which)

    plain = placement.without_pairs(quantized)
    if method == "max":
        fit, found = extremes.largest(
            plain, where.tensors, samples, folder, batch=batch, size=size, told=told.of
        )
        held = {name: Histogram.empty(counted=False) for name in where.tensors}
        peaks = [found, Peaks()]
    else:
        parts = [told.of(batches(~is_held)), told.of(batches(is_held))]
        (fit, held), peaks = activations.of_parts(plain, where.tensors, parts, folder, batch=batch)
    ranges = _Ranges(where, fit, held, percentile)
    if method == "auto":
        choices = ranges.choices()
        scales = {name: ranges.scales(limits, precision) for name, (limits, _) in choices.items()}
        tried = list(batches(_first(is_held if is_held.any() else ~is_held, batch.min)))
        limits, gave = choices[trials.best(quantized, scales, tried, folder)]
        known = {name: limits for name, (limits, _) in choices.items() if name in _EVERYWHERE}
    else:
        limits, gave = (
            ranges.by(thresholds.methods(percentile)[method]),
            [method] * len(where.groups),
        )
        known = {}
    placement.rescale(quantized, ranges.scales(limits, precision))
    both = {name: fit[name].merged(held[name]) for name in where.tensors}
    lost = {name: one.not_finite for name, one in both.items() if one.not_finite}
    return Calibration(
        samples=told.samples,
        batches=told.batches,
        chosen=dict(Counter(gave)),
        not_finite=lost,
        largest={n: np.inf if n in lost else float(one.most) for n, one in both.items()},
        extreme=_extreme(peaks, (~is_held, is_held)),
        kept=kept(where.groups, ranges.whole, known, limits, gave, percentile),
    )


def of_graph(
    made: Sequence[Calibration], quantized: onnx.ModelProto, precision: Precision
) -> Calibration:
    """The calibration whose scales a graph has: a goal may have the equalised graph calibrated, too."""
    scales = placement.scales_of(quantized)

    def same(one: Calibration) -> int:
        return sum(
            scales.get(name) == placement.scale_of(kept.limit, precision)
            for kept in one.kept
            for name in kept.group
        )

    return max(made, key=same)


def _extreme(peaks: Iterable[Peaks], parts: Iterable[Rows]) -> NDArray[np.intp]:
    """The samples with the largest values, most of them from the first part, as are most samples."""
    found = [
        np.flatnonzero(which)[seen.rows(most)]
        for seen, which, most in zip(peaks, parts, _EXTREME, strict=True)
    ]
    return np.sort(np.concatenate(found))


def _first(which: Rows, least: int) -> Rows:
    """The first of the marked samples, enough to compare whole graphs on, and to fill the least batch."""
    return which & (np.cumsum(which) <= max(_TRIED, least))


def _method(method: str, precision: Precision) -> str:
    """For fp8 what has the least error is ``max``: clipping gains no precision among its floats."""
    return "max" if precision is Precision.FP8 and method in ("auto", "mse") else method


class _Told:
    """Counts samples as they pass."""

    def __init__(self, batch: Batch, seen: Callable[[int], None]) -> None:
        self._batch, self._seen = batch, seen
        self.samples = self.batches = 0

    def of(self, batches: Iterable[Arrays]) -> Iterator[Arrays]:
        for each in batches:
            yield each
            self.samples += self._batch.count(each)
            self.batches += 1
            self._seen(self.samples)


class _Ranges:
    """Thresholds of the groups of tensors that share a scale."""

    def __init__(
        self,
        where: placement.Placement,
        fit: Statistics,
        held: Statistics,
        percentile: float | None,
    ) -> None:
        self._groups, self._percentile = where.groups, percentile
        self._fit, self._held = (
            [reduce(Histogram.merged, (part[name] for name in group)) for group in where.groups]
            for part in (fit, held)
        )
        self.whole = [one.merged(other) for one, other in zip(self._fit, self._held, strict=True)]

    def by(self, method: thresholds.Threshold) -> list[float]:
        with ThreadPoolExecutor(cpu_threads()) as threads:
            return list(threads.map(method, self.whole))

    def choices(self) -> dict[str, tuple[list[float], list[str]]]:
        """Name → the thresholds, and which method gave each: what ``auto`` tries on the whole graph."""
        methods = thresholds.candidates(self._percentile)
        everywhere = {name: self.by(methods[name]) for name in _EVERYWHERE}

        def mixed(at: int) -> tuple[str, float]:
            fit, held, whole = self._fit[at], self._held[at], self.whole[at]
            name = thresholds.chosen(fit, held if held.total else fit, methods)
            known = everywhere.get(name)
            return name, methods[name](whole) if known is None else known[at]

        with ThreadPoolExecutor(cpu_threads()) as threads:
            mix = list(threads.map(mixed, range(len(self.whole))))
        found = {_MIX: ([limit for _, limit in mix], [name for name, _ in mix])}
        for name, limits in everywhere.items():
            found[name] = limits, [name] * len(mix)
        middle = np.sqrt(np.multiply(found[_MIX][0], found["max"][0])).tolist()
        return found | {_MIDDLE: (middle, [_MIDDLE] * len(mix))}

    def scales(self, limits: Iterable[float], precision: Precision) -> Mapping[str, np.float32]:
        """The scale of each tensor."""
        return {
            name: placement.scale_of(limit, precision)
            for group, limit in zip(self._groups, limits, strict=True)
            for name in group
        }
