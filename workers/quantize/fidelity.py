"""How much of a graph's activations is left by quantisation: the signal-to-noise ratio of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from farm.errors import InvalidModel
from workers.backends.ort.cpu import cpu_threads
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations, placement
from workers.quantize.activations import observed

#: Layers kept, the noisiest first: a hostile model may have any number, with names of any length.
MOST_LAYERS = 200
_NAME_LENGTH = 200
#: Samples on which layers are compared.
_COMPARED = 8
#: What a layer without noise is given, and one without signal.
_LIMIT_DB = 150.0
#: Values that are summed at once, in the processor's cache.
_CHUNK = 1 << 16


def by_layer(
    quantized: onnx.ModelProto, batches: Iterable[Arrays], folder: Path
) -> dict[str, float]:
    """Quantised activation → its signal-to-noise ratio in dB, in the order of the graph.

    The signal is what the unquantised graph computes there; the noise is what the quantised one adds to
    it, by its own rounding and by that of every layer before.
    """
    names = placement.placed(quantized).tensors
    try:
        plain = observed(placement.without_pairs(quantized), names, folder, exact=False)
        rounded = observed(quantized, names, folder, exact=False)
        if plain is None or rounded is None:
            return {}
        layers = plain.output_names
        power = {name: np.zeros(2) for name in layers}
        with ThreadPoolExecutor(cpu_threads()) as threads:
            for batch in batches:
                expected, made = plain.run(batch), rounded.run(batch)
                pairs = [(expected[name], made[name]) for name in layers]
                found = threads.map(lambda pair: _powers(*pair), pairs)
                for name, sums in zip(layers, found, strict=True):
                    power[name] += sums
    except InvalidModel as err:  # what can't be run beside the other has no ratio
        print(f"no signal-to-noise ratios: {err.detail}")
        return {}
    return _noisiest({name: decibels(*sums) for name, sums in power.items()})


def few(samples: Arrays, batch: Batch) -> Iterator[Arrays]:
    """A few of the samples that methods were judged by, at once no more than the model needs."""
    is_held = activations.held_out(batch.count(samples), batch.min)
    which = is_held if is_held.any() else ~is_held
    which &= np.cumsum(which) <= max(_COMPARED, batch.min)
    return activations.batches_of(samples, batch, max(batch.min, min(2, batch.max)), which)


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers, within ±150 dB."""
    if noise <= 0:
        return _LIMIT_DB
    if signal <= 0:
        return -_LIMIT_DB
    return round(float(np.clip(10 * np.log10(signal / noise), -_LIMIT_DB, _LIMIT_DB)), 2)


def _powers(expected: NDArray[np.generic], made: NDArray[np.generic]) -> tuple[float, float]:
    if expected.shape != made.shape:  # sizes that depend on values: nothing to compare
        return 0.0, float(expected.size)
    one, other = expected.reshape(-1), made.reshape(-1)
    signal = noise = 0.0
    for start in range(0, one.size, _CHUNK):
        ends = slice(start, start + _CHUNK)
        wide, near = one[ends].astype(np.float64), other[ends].astype(np.float64)
        sums = _squares(wide, near)
        if not np.isfinite(sums).all():
            counts = np.isfinite(wide) & np.isfinite(near)
            sums = _squares(wide[counts], near[counts])
        signal, noise = signal + sums[0], noise + sums[1]
    return signal, noise


def _squares(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):  # infinity less itself
        error = one - other
    # Not by np.dot, whose library wakes its threads for each sum.
    return float(np.square(one).sum()), float(np.square(error).sum())


def _noisiest(found: dict[str, float]) -> dict[str, float]:
    kept: Sequence[str] = list(found)
    if len(found) > MOST_LAYERS:
        worst = set(sorted(found, key=lambda name: found[name])[:MOST_LAYERS])
        kept = [name for name in found if name in worst]
    return {name[:_NAME_LENGTH]: found[name] for name in kept}
