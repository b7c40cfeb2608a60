"""Compares an engine with its source at the ends of its profile, which samples needn't reach.

Kernels are chosen by size: an engine that is right at the sizes of the samples may be wrong at those it
promises to take besides. The batch's are tried with batch invariance (``workers.measure.invariance``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from farm.reports.accuracy import AtSizes
from farm.specs.shapes import Profile
from workers.inputs.batch import Arrays, Batch, Shapes
from workers.inputs.profiles import Which, shapes_at
from workers.inputs.samples import Runnable
from workers.measure.accuracy import OutputComparison

_ENDS: tuple[Which, ...] = ("min", "max")
#: Larger sizes aren't run if source and engine would take longer, as a Transformer does with their square.
_MAX_RUN_S = 1.5


def at_ends(
    engine: Runnable, source: Runnable, samples: Arrays, profile: Profile, batch: Batch
) -> list[AtSizes]:
    """The figures of a smallest batch at the smallest and the largest sizes of the other axes.

    Values are the samples', repeated or cut. None of a model whose other axes are fixed, or whose inputs hold
    sizes as values.
    """
    if any(one.values is not None for one in profile.values()):
        return []
    few = batch.repeated(samples, batch.min)
    ends = list(_ends(few, profile, batch))
    if not ends:
        return []
    began = time.perf_counter()
    source.run(few)
    engine.run(few)
    took_s = time.perf_counter() - began
    found = []
    for which, shapes in ends:
        sized = {name: _sized(array, shapes[name]) for name, array in few.items()}
        growth = max(array.size / max(few[name].size, 1) for name, array in sized.items())
        if took_s * growth**2 > _MAX_RUN_S:
            found.append(AtSizes(which=which, skipped="it would take too long"))
            continue
        found.append(_compared(engine, source, sized, which, batch))
    return found


def _ends(few: Arrays, profile: Profile, batch: Batch) -> Iterator[tuple[Which, Shapes]]:
    """The ends of the profile, with the batch as it is, that differ from the samples' sizes."""
    given = {name: array.shape for name, array in few.items()}
    for which in _ENDS:
        shapes = batch.resized(shapes_at(profile, which), batch.min)
        if any(shapes[name] != shape for name, shape in given.items()):
            yield which, shapes


def _sized(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """An array's values, repeated or cut along each axis to this shape."""
    for axis, (given, size) in enumerate(zip(array.shape, shape, strict=True)):
        if given != size:
            array = np.take(array, np.arange(size) % given, axis)
    return array


def _compared(
    engine: Runnable, source: Runnable, arrays: Arrays, which: Which, batch: Batch
) -> AtSizes:
    try:
        expected = source.run(arrays)
    except Exception as err:  # whatever a model's own code raises
        return AtSizes(which=which, skipped=f"the source fails: {err}"[:1000])
    comparison = OutputComparison(batch_axes=batch.output_axes)
    try:
        comparison.add(expected, engine.run(arrays), batch.min)
    except Exception as err:
        return AtSizes(which=which, failed=f"{type(err).__name__}: {err}"[:1000])
    accuracy = comparison.found()
    shares = [one for one in (accuracy.equal, accuracy.matched) if one is not None]
    return AtSizes(
        which=which,
        relative_error=accuracy.relative_error,
        equal=min(shares, default=None),
        not_finite=comparison.not_finite,
    )
