"""The largest magnitudes of a graph's activations, as plain kernels compute them, to the bit.

ONNX Runtime's fastest kernels round differently, if only a little. So they look at all samples, and the plain
ones, which take half as long again, at those that come near a tensor's largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize.activations import LEAST, Statistics, batches_of, gathered, observed
from workers.quantize.peaks import Peaks

#: Near is what comes within this share of the largest. Sums in another order differ by about 1e-5; where
#: they differ by a quarter of this, all samples are run.
_NEAR = 2.0**-10
#: From so many samples a tensor on, looking twice is worth it: each has one or two near its largest value.
_WORTH = 2
#: The most samples that are looked at twice.
_MOST = 0.5


def largest(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Arrays,
    folder: Path,
    *,
    batch: Batch,
    size: int,
    told: Callable[[Iterable[Arrays]], Iterator[Arrays]],
) -> tuple[Statistics, Peaks]:
    """Histograms without counts whose ``most`` is exact, and where the largest values are.

    Parameters:
        size: of a batch.
        told: passes the batches on that are to be counted as progress.
    """
    count = batch.count(samples)

    def run(
        which: NDArray[np.bool_], *, exact: bool, is_first: bool = False
    ) -> tuple[Statistics, Peaks]:
        peaks = Peaks(batch.min)
        batches = batches_of(samples, batch, size, which)
        session = observed(model, names, folder, exact=exact)
        found = gathered(
            session,
            names,
            told(batches) if is_first else batches,
            counted=False,
            batch=batch,
            peaks=peaks,
        )
        return found, peaks

    every = np.ones(count, bool)
    if count < _WORTH * len(names):
        return run(every, exact=True, is_first=True)
    _, peaks = run(every, exact=False, is_first=True)
    near = _whole(peaks.near(_NEAR), count, size, max(batch.min, min(LEAST, batch.max)))
    if peaks.are_finite and near.sum() <= _MOST * count:
        found, _ = run(near, exact=True)
        if all(_agree(found[name].most, top) for name, top in peaks.tops().items()):
            return found, peaks
    return run(every, exact=True)


def _agree(exact: np.float32, fast: np.float32) -> bool:
    return bool(abs(exact - fast) <= _NEAR / 4 * fast)


def _whole(near: NDArray[np.bool_], count: int, size: int, least: int) -> NDArray[np.bool_]:
    """The marks, and as many more as let the last batch run."""
    which = np.zeros(count, bool)
    which[: len(near)] = near
    short = int(which.sum()) % size
    if 0 < short < least:
        which[np.flatnonzero(~which)[: least - short]] = True
    return which
