"""Whole graphs tried: which of several choices of scales changes a graph's outputs least on held-out samples.

What errs least tensor by tensor needn't do so together. One session serves all choices: it takes the scales
as inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.errors import InvalidModel
from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.graphs import files
from workers.inputs.samples import Arrays
from workers.quantize import placement

Scales = Mapping[str, np.float32]


def best(
    quantized: onnx.ModelProto,
    choices: Mapping[str, Scales],
    batches: Sequence[Arrays],
    folder: Path,
) -> str:
    """The choice whose outputs are nearest to the unquantised graph's; the first of equals."""
    if len(choices) < 2 or not batches:
        return next(iter(choices))
    tensors = list(next(iter(choices.values())))
    try:
        plain = _session(placement.without_pairs(quantized), folder)
        expected = [plain.run(batch) for batch in batches]
        del plain
        tried = _session(placement.with_scales_given(quantized, tensors), folder)
    except InvalidModel as err:  # what it can't try, it can't prefer
        print(f"choices of scales aren't compared: {err.detail}")
        return next(iter(choices))
    found = {}
    for name, scales in choices.items():
        given = {placement.scale_name(tensor): np.asarray(scales[tensor]) for tensor in tensors}
        made = [tried.run({**batch, **given}) for batch in batches]
        found[name] = distance(expected, made)
    print("error of the outputs: " + ", ".join(f"{n} {error:.3g}" for n, error in found.items()))
    return min(found, key=lambda name: found[name])


def distance(expected: Sequence[Arrays], made: Sequence[Arrays]) -> float:
    """How far outputs are from those expected over some batches, by the mean over the outputs.

    Of floats the mean squared error over their variance; of others the share that differs; 1 where shapes do.
    """
    names = expected[0]
    return float(
        np.mean([_distance([b[n] for b in expected], [b[n] for b in made]) for n in names])
    )


def _distance(one: Sequence[NDArray[np.generic]], other: Sequence[NDArray[np.generic]]) -> float:
    if [array.shape for array in one] != [array.shape for array in other]:
        return 1.0
    # Over all batches at once, so that the figure doesn't depend on them.
    expected, made = (np.concatenate([a.reshape(-1) for a in arrays]) for arrays in (one, other))
    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(expected != made))
    counts = np.isfinite(expected)
    wide, near = expected[counts].astype(np.float64), made[counts].astype(np.float64)
    if not np.isfinite(near).all():
        return float("inf")
    if not wide.size:
        return 0.0
    spread = float(wide.var()) or float(np.mean(wide**2)) or 1.0
    return float(np.mean((wide - near) ** 2)) / spread


def _session(model: onnx.ModelProto, folder: Path) -> OrtModel:
    with files.written(model, folder / "tried.onnx") as file:
        return OrtModel(file, providers=fastest_providers())
