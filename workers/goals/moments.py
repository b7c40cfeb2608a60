"""Second moments of the inputs of a graph's products, rounded as they will be, in one pass over samples.

A convolution's inputs are those of one place of its result; of many places some are drawn. A quarter of the
samples is kept apart, to judge by what is chosen by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from workers.backends.ort.cpu import cpu_threads
from workers.goals.gptq import Moments
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations

Floats32 = NDArray[np.float32]

#: One in so many samples is kept apart.
_APART = 4
#: Of a product's inputs as many rows are taken as make this many multiplications, or so many per input.
_MOST_MACS, _LEAST_ROWS = 1 << 29, 8
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A product, and the activation that it reads.

    Parameters:
        plain, rounded: the tensor before and behind its Q/DQ.
        shape: of its weights as groups × outputs × inputs.
        kernel: of a convolution; None for a matrix product, which reads the last axis.
    """

    plain: str
    rounded: str
    shape: tuple[int, int, int]
    kernel: Kernel | None = None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Where a convolution reads, one number for each axis of space."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]  #: zeros
    behind: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, sizes: Sequence[int]) -> Kernel | None:
        """A convolution's; None if the runtime works out its padding."""
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if given.get("auto_pad", b"NOTSET") != b"NOTSET":
            return None
        axes = len(sizes)
        pads = tuple(given.get("pads", [0] * 2 * axes))
        return cls(
            sizes=tuple(sizes),
            strides=tuple(given.get("strides", [1] * axes)),
            dilations=tuple(given.get("dilations", [1] * axes)),
            before=pads[:axes],
            behind=pads[axes:],
        )

    def padded(self, values: Floats32) -> Floats32:
        around = [(0, 0), (0, 0), *zip(self.before, self.behind, strict=True)]
        return np.pad(values, around) if any(map(any, around)) else values

    def places(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes of space of the result for a padded input's."""
        each = zip(shape, self.sizes, self.strides, self.dilations, strict=True)
        return tuple((size - apart * (of - 1) - 1) // step + 1 for size, of, step, apart in each)

    def read(self, shape: Sequence[int], at: NDArray[np.intp]) -> NDArray[np.intp]:
        """What the result reads at some places: indices into a padded input's space, kernel × places."""
        places = np.unravel_index(at, self.places(shape))
        offsets = np.unravel_index(np.arange(prod(self.sizes)), self.sizes)
        axes = zip(offsets, places, self.strides, self.dilations, strict=True)
        found = [o[:, None] * apart + p[None] * step for o, p, step, apart in axes]
        return np.asarray(np.ravel_multi_index(found, tuple(shape)))


def gathered(
    model: onnx.ModelProto,
    readers: Mapping[str, Reader],
    batches: Sequence[Arrays],
    batch: Batch,
    folder: Path,
    has_time: Callable[[], bool],
) -> dict[str, tuple[Moments, Moments]] | None:
    """Product → the moments of most samples, and of those kept apart.

    Parameters:
        model: with Q/DQ as it will run.
        batches: of samples; with a single one that can't be cut, none are kept apart, and both are the same.
        has_time: whether this may go on.

    Returns:
        None if there wasn't time.
    """
    names = sorted({name for one in readers.values() for name in (one.plain, one.rounded)})
    session = activations.observed(model, names, folder, exact=False)
    count = sum(batch.count(each) for each in batches)
    pieces = activations.Pieces(batch)
    sums = {(product, is_apart): _Sum() for product in readers for is_apart in (False, True)}

    def add(product: str, made: Arrays, number: int, share: float, *, is_apart: bool) -> None:
        reader = readers[product]
        rounded, plain = (
            made[name].astype(np.float32, copy=False) for name in (reader.rounded, reader.plain)
        )
        sums[product, is_apart].add(*_rows(reader, rounded, plain, share, number))

    with ThreadPoolExecutor(cpu_threads()) as threads:
        for number, (given, is_apart) in enumerate(_pieces(batches, batch, pieces)):
            if not has_time():
                return None
            made = given if session is None else given | session.run(given)
            pieces.saw(made, batch.count(given))
            told = partial(
                add, made=made, number=number, share=batch.count(given) / count, is_apart=is_apart
            )
            list(threads.map(told, readers))
    found = {}
    for product in readers:
        most, apart = sums[product, False], sums[product, True]
        found[product] = most.means(), (apart if apart.rows else most).means()
    return found


def _pieces(
    batches: Sequence[Arrays], batch: Batch, pieces: activations.Pieces
) -> Iterator[tuple[Arrays, bool]]:
    """Batches whose activations fit into memory, and whether they are kept apart: of every four one."""
    whole = [part for each in batches for part in _cut(each, batch, len(batches))]
    for number, part in enumerate(whole):
        is_last = len(whole) > 1 and number == len(whole) - 1
        for piece, _ in pieces.of([part]):
            yield piece, is_last or number % _APART == _APART - 1


def _cut(given: Arrays, batch: Batch, batches: int) -> Iterator[Arrays]:
    count = batch.count(given)
    if not batch.is_dynamic or batches >= _APART:
        yield given
        return
    yield from batch.split(given, max(batch.min, ceil(count / _APART)), smallest=batch.min)


def _rows(
    reader: Reader, rounded: Floats32, plain: Floats32, share: float, number: int
) -> tuple[Floats32, Floats32]:
    """Some of a product's inputs, rounded and before: groups × inputs × rows.

    Parameters:
        share: of all samples that this batch has.
        number: of the batch, which says what is drawn.
    """
    groups, _, inputs = reader.shape
    most = share * max(_MOST_MACS / (groups * inputs**2), _LEAST_ROWS * inputs)
    draw = np.random.default_rng((_SEED, number))
    if reader.kernel is None:
        rows = [one.reshape(-1, inputs) for one in (rounded, plain)]
        at = _drawn(draw, len(rows[0]), most)
        first, second = (one[at].T[None] for one in rows)
        return first, second
    kernel = reader.kernel
    padded = [kernel.padded(one) for one in (rounded, plain)]
    samples, shape = padded[0].shape[0], padded[0].shape[2:]
    at = _drawn(draw, prod(kernel.places(shape)), most / samples)
    read = kernel.read(shape, at)
    first, second = (
        one.reshape(samples, -1, prod(shape))[:, :, read]
        .reshape(samples, groups, inputs, len(at))
        .transpose(1, 2, 0, 3)
        .reshape(groups, inputs, -1)
        for one in padded
    )
    return first, second


def _drawn(draw: np.random.Generator, count: int, most: float) -> NDArray[np.intp]:
    if most >= count:
        return np.arange(count)
    return np.sort(draw.choice(count, max(1, int(most)), replace=False))


class _Sum:
    """Adds up moments."""

    def __init__(self) -> None:
        self._inputs: NDArray[np.float64] | float = 0.0
        self._errors: NDArray[np.float64] | float = 0.0
        self.rows = 0

    def add(self, rounded: Floats32, plain: Floats32) -> None:
        across = rounded.swapaxes(1, 2)
        self._inputs = self._inputs + (rounded @ across).astype(np.float64)
        self._errors = self._errors + ((rounded - plain) @ across).astype(np.float64)
        self.rows += rounded.shape[2]

    def means(self) -> Moments:
        inputs, errors = (
            np.asarray(one) / max(1, self.rows) for one in (self._inputs, self._errors)
        )
        return Moments(inputs=inputs, errors=errors)
