"""Channels that never fire on samples: what they compute is judged, and quantised, by nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.errors import InvalidModel
from workers.inputs.batch import Arrays, Batch
from workers.quantize import activations

_FIRING = ("Relu",)
#: Samples that are looked at, and that it takes to say anything.
_MOST, _FEWEST = 64, 32
_MANY = 0.25  #: of all channels


def warning(model: onnx.ModelProto, samples: Arrays, batch: Batch, folder: Path) -> str | None:
    """Says how many channels are zero after Relu for each of the first samples, if they are many.

    Parameters:
        model: with its weights.
        folder: for the graph that tells them.
    """
    names = [node.output[0] for node in model.graph.node if node.op_type in _FIRING]
    seen = min(batch.count(samples), _MOST)
    if not names or seen < _FEWEST:
        return None
    try:
        session = activations.observed(model, names, folder, exact=False)
        if session is None:
            return None
        largest: dict[str, NDArray[np.float64]] = {}
        first = batch.take(samples, slice(0, seen))
        size = max(batch.min, min(batch.opt, 8))
        for arrays in batch.split(first, size, smallest=batch.min):
            for name, array in session.run(arrays).items():
                if array.ndim >= 2:
                    most = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).max(axis=1)
                    largest[name] = np.maximum(largest.get(name, most), most)
    except (InvalidModel, ValueError) as err:  # sizes that depend on the data, for one
        print(f"channels aren't looked at: {err}", flush=True)
        return None
    return _told(
        {name: (int((most <= 0).sum()), len(most)) for name, most in largest.items()}, seen
    )


def _told(counts: dict[str, tuple[int, int]], seen: int) -> str | None:
    silent, all_of_them = (
        (sum(each) for each in zip(*counts.values(), strict=True)) if counts else (0, 1)
    )
    if silent < _MANY * all_of_them:
        return None
    worst = max(counts, key=lambda name: counts[name][0] / max(1, counts[name][1]))
    some, of = counts[worst]
    name = worst.removesuffix("__wide")  # as workers.graphs.rounding calls it before it is rounded
    return (
        f"{silent} of {all_of_them} channels after Relu never fire on {seen} samples, most in "
        f"{name[:100]!r} ({some} of {of}): either the samples are less varied than those of training, or "
        "these channels are dead in the model"
    )
