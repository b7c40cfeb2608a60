"""Checks whether a row's outputs depend on the other rows of its batch: a known fault of compilers.

The same row is run alone, first and last in a batch, and in a batch of copies of itself; and in the
profile's largest batch, whose kernels may be others, and which no comparison with the source reaches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from farm.reports.accuracy import BatchInvariance
from farm.specs.precision import Precision
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable
from workers.measure.difference import MAX_CHANGED, NO_DIFFERENCE, Difference, difference

#: A batch of this size, if the profile allows it, is enough to show the fault.
_BATCH = 4
#: The largest batch isn't run if that would take longer, nor is it timed then.
_MAX_RUN_S = 1.5
#: Largest error, as a share of the output's largest magnitude: another batch size may use another kernel,
#: which sums in another order, and quantised values may round to the next level.
_TOLERANCE = {Precision.FP32: 1e-3, Precision.FP16: 2e-2}
_WIDE_TOLERANCE = 5e-2


def batch_invariance(
    engine: Runnable,
    source: Runnable,
    samples: Arrays,
    batch: Batch,
    precision: Precision,
) -> BatchInvariance | None:
    """Run one row next to different others; None if the batch is fixed.

    If a row's outputs depend on others in the source itself, as with attention over the batch, the engine
    is right to do the same.
    """
    if not batch.is_dynamic or batch.max <= batch.min:
        return None
    size = max(min(_BATCH, batch.max), batch.min + 1)
    began = time.perf_counter()
    report = _report(engine, source, samples, batch, _batches(samples, batch, size), precision)
    run_s = (time.perf_counter() - began) / 3
    if not report.holds or batch.max == size or run_s * batch.max / size > _MAX_RUN_S:
        return report
    return _report(engine, source, samples, batch, [_largest(samples, batch)], precision)


def _batches(samples: Arrays, batch: Batch, size: int) -> list[list[int]]:
    """The numbers of samples in batches with the first one first, last, and everywhere."""
    count = batch.count(samples)
    others = [1 + number % max(count - 1, 1) for number in range(size - 1)] if count > 1 else []
    return [[0, *others], [*others, 0], [0] * size] if others else [[0] * size]


def _largest(samples: Arrays, batch: Batch) -> list[int]:
    """All samples in turn in the largest batch, and the first one also last."""
    return [*(np.arange(batch.max - 1) % batch.count(samples)).tolist(), 0]


def _report(
    engine: Runnable,
    source: Runnable,
    samples: Arrays,
    batch: Batch,
    batches: Sequence[Sequence[int]],
    precision: Precision,
) -> BatchInvariance:
    found = _difference(engine, samples, batch, batches)
    tolerance = _TOLERANCE.get(precision, _WIDE_TOLERANCE)
    holds = found.finite and found.scaled_error <= tolerance and found.changed <= MAX_CHANGED
    report = BatchInvariance(
        batch=len(batches[0]),
        max_error=max(found.scaled_error, found.changed),
        tolerance=tolerance,
        holds=holds,
    )
    if holds:
        return report
    of_source = _difference(source, samples, batch, batches)
    return report.model_copy(
        update={
            "source_error": max(of_source.scaled_error, of_source.changed),
            "holds": of_source.beyond(tolerance) is not None,
        }
    )


def _difference(
    model: Runnable, samples: Arrays, batch: Batch, batches: Sequence[Sequence[int]]
) -> Difference:
    smallest = model.run(batch.take(samples, [0] * batch.min))
    alone = _row(smallest, batch, 0, batch.min)
    total = NO_DIFFERENCE
    for numbers in batches:
        made = model.run(batch.take(samples, numbers))
        for place, number in enumerate(numbers):
            if number == 0:
                row = _row(made, batch, place, len(numbers))
                both = {name: alone[name] for name in row if name in alone}
                total = total.merged(difference(both, {name: row[name] for name in both}))
    return total


def _row(made: Arrays, batch: Batch, place: int, size: int) -> Arrays:
    """One row's outputs, for those outputs that have a row per sample."""
    rows: Arrays = {}
    for name, array in made.items():
        axis = batch.axis_of_output(name)
        if axis is not None and array.ndim > axis and array.shape[axis] == size:
            rows[name] = np.take(array, [place], axis)
    return rows
