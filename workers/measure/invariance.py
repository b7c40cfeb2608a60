"""Checks whether a row's outputs depend on the other rows of its batch: a known fault of compilers.

The same row is run alone, first and last in a batch, and in a batch of copies of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from farm.reports.accuracy import BatchInvariance
from farm.specs.precision import Precision
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable
from workers.measure.difference import MAX_CHANGED, NO_DIFFERENCE, Difference, difference

#: A batch of this size, if the profile allows it, is enough to show the fault.
_BATCH = 4
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
    if not batch.is_dynamic or batch.min > 1 or batch.max < 2:
        return None
    size = min(_BATCH, batch.max)
    count = batch.count(samples)
    others = [1 + number % max(count - 1, 1) for number in range(size - 1)] if count > 1 else []
    batches = [[0, *others], [*others, 0], [0] * size] if others else [[0] * size]
    found = _difference(engine, samples, batch, batches)
    tolerance = _TOLERANCE.get(precision, _WIDE_TOLERANCE)
    holds = found.finite and found.scaled_error <= tolerance and found.changed <= MAX_CHANGED
    report = BatchInvariance(
        batch=size,
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
    alone = model.run(batch.take(samples, [0]))
    total = NO_DIFFERENCE
    for numbers in batches:
        made = model.run(batch.take(samples, numbers))
        for place, number in enumerate(numbers):
            if number == 0:
                row = _row(made, alone, batch, place, len(numbers))
                total = total.merged(difference({n: alone[n] for n in row}, row))
    return total


def _row(
    made: Arrays,
    alone: Mapping[str, NDArray[np.generic]],
    batch: Batch,
    place: int,
    size: int,
) -> Arrays:
    """One row's outputs, for those outputs that have a row per sample."""
    rows: Arrays = {}
    for name, array in made.items():
        axis = batch.axis_of_output(name)
        if axis is None or array.ndim <= axis or alone[name].ndim <= axis:
            continue
        if array.shape[axis] == size and alone[name].shape[axis] == 1:
            rows[name] = np.take(array, [place], axis)
    return rows
