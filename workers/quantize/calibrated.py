"""Calibrates: chooses the scales of a Q/DQ graph's activations from samples.

``auto`` chooses for each tensor between the methods. They take their thresholds from three quarters of the
samples; the one with the least error on the last quarter takes its threshold from all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import onnx

from farm.specs.precision import Precision
from workers.backends.ort.cpu import cpu_threads
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations, placement, thresholds
from workers.quantize.activations import Statistics
from workers.quantize.histograms import Histogram


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a graph's activations were calibrated."""

    samples: int
    batches: int
    chosen: dict[str, int]  #: method → tensors, or groups of them, whose scale it gave
    not_finite: dict[str, int]  #: tensor → infinite and NaN values, which no range holds


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
    session = activations.observed(
        placement.without_pairs(quantized), where.tensors, folder, exact=method == "max"
    )

    def run(which: Iterable[Arrays]) -> Statistics:
        counted = method != "max"
        return activations.gathered(session, where.tensors, which, counted=counted)

    count = batch.count(samples)
    is_held = np.zeros(count, bool)
    if method == "auto":
        is_held = activations.held_out(count, batch.min)
    told = _Told(batch, seen)
    fit = run(told.of(activations.batches_of(samples, batch, size, ~is_held)))
    held = run(told.of(activations.batches_of(samples, batch, size, is_held)))
    chosen = _rescaled(quantized, where, fit, held, method, percentile, precision)
    lost = {name: fit[name].not_finite + held[name].not_finite for name in where.tensors}
    return Calibration(
        samples=told.samples,
        batches=told.batches,
        chosen=chosen,
        not_finite={name: count for name, count in lost.items() if count},
    )


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


def _rescaled(
    quantized: onnx.ModelProto,
    where: placement.Placement,
    fit: Statistics,
    held: Statistics,
    method: str,
    percentile: float | None,
    precision: Precision,
) -> dict[str, int]:
    methods = thresholds.methods(percentile)

    def found(group: tuple[str, ...]) -> tuple[str, float]:
        taken, judged = (
            reduce(Histogram.merged, (part[name] for name in group)) for part in (fit, held)
        )
        everything = taken.merged(judged)
        name = method
        if method == "auto":
            name = thresholds.chosen(taken, judged if judged.total else taken, methods)
        return name, methods[name](everything)

    with ThreadPoolExecutor(cpu_threads()) as threads:
        results = list(threads.map(found, where.groups))
    scales = {
        name: placement.scale_of(threshold, precision)
        for group, (_, threshold) in zip(where.groups, results, strict=True)
        for name in group
    }
    placement.rescale(quantized, scales)
    return dict(Counter(name for name, _ in results))
