"""Statistics of a graph's activations, gathered in one pass in which only one batch is in memory.

ONNX Runtime runs the graph with the wanted tensors as outputs. Histograms add up exactly
(``workers.quantize.histograms``), so what comes out depends neither on the size of the batches nor on which
samples share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from workers.backends.ort.cpu import Optimisation, OrtModel, cpu_threads, fastest_providers
from workers.graphs import files
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize.histograms import Histogram
from workers.quantize.peaks import Peaks

#: One in so many samples is held out, to judge a method by.
_HELD_OUT = 4
_SEED = 0
#: Activations held at once: what fits is counted from the processor's cache, and costs no fresh pages.
_AT_ONCE_BYTES = 384 << 20
#: A single row takes other kernels, which may round differently.
LEAST = 2
#: Values of a sample from which on a call for each sample costs nothing.
_LONG = 1 << 14

Statistics = dict[str, Histogram]


def gathered(
    session: OrtModel | None,
    names: Sequence[str],
    batches: Iterable[Arrays],
    *,
    counted: bool,
    batch: Batch | None = None,
    peaks: Peaks | None = None,
) -> Statistics:
    """The histogram of each of these tensors over the batches.

    Parameters:
        session: gives those of these tensors that aren't inputs of the graph: see ``observed``.
        counted: whether histograms are wanted, or only minima and maxima.
        batch: lets batches run in pieces, as far as their activations are large.
        peaks: is told the largest magnitudes of each sample; needs ``batch``.
    """
    found = {name: Histogram.empty(counted=counted) for name in names}
    pieces = _Pieces(batch)

    def add(name: str, made: Arrays, count: int) -> None:
        values = made[name].astype(np.float32, copy=False)
        low, high = _extremes(values, count)
        if peaks is not None:
            peaks.saw(name, np.maximum(np.abs(low), np.abs(high)), count)
        found[name].add(values, (low.min(), high.max()))

    with _counters() as threads:
        for piece, count in pieces.of(batches):
            made = piece if session is None else piece | session.run(piece)
            pieces.saw(made, count)
            list(threads.map(lambda name, made=made, count=count: add(name, made, count), names))
    return found


@contextmanager
def _counters() -> Iterator[ThreadPoolExecutor]:
    """Threads that count, one a core. Those of PyTorch's own would only wait for one another."""
    before = torch.get_num_threads()
    alone = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(cpu_threads(), initializer=alone) as threads:
            yield threads
    finally:
        # The last call counts for threads that are yet to start.
        torch.set_num_threads(before)


def _extremes(values: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], ...]:
    """The minima and maxima of each sample's values; of all, where samples can't be told apart."""
    if not values.size:
        return np.zeros(1, np.float32), np.zeros(1, np.float32)
    is_by_sample = count > 0 and values.ndim > 0 and values.shape[0] == count
    rows = values.reshape(count if is_by_sample else 1, -1)
    if rows.shape[1] < _LONG:
        return rows.min(axis=1), rows.max(axis=1)
    # Both from one look at the memory.
    writable = rows if rows.flags.writeable else rows.copy()
    pairs = [torch.aminmax(row) for row in torch.from_numpy(writable)]
    return tuple(torch.stack(ends).numpy() for ends in zip(*pairs, strict=True))


class _Pieces:
    """Cuts batches by the size of the activations that the pieces before had."""

    def __init__(self, batch: Batch | None) -> None:
        self._batch, self._size = batch, 0

    def of(self, batches: Iterable[Arrays]) -> Iterator[tuple[Arrays, int]]:
        """The pieces, and how many samples each has."""
        batch = self._batch
        for whole in batches:
            count = 0 if batch is None else batch.count(whole)
            if batch is None or not batch.is_dynamic:
                yield whole, count
                continue
            least, at = max(batch.min, min(LEAST, batch.max)), 0
            while at < count:
                size = max(self._size, least)
                # The last piece takes what would be too small for one of its own.
                if count - at - size < least:
                    size = count - at
                yield batch.take(whole, slice(at, at + size)), size
                at += size

    def saw(self, made: Arrays, count: int) -> None:
        if not self._size:
            each = sum(array.nbytes for array in made.values()) / max(1, count)
            self._size = int(max(1, _AT_ONCE_BYTES // max(1.0, each)))


def of_parts(
    model: onnx.ModelProto,
    names: Sequence[str],
    parts: Sequence[Iterable[Arrays]],
    folder: Path,
    *,
    batch: Batch,
) -> tuple[list[Statistics], list[Peaks]]:
    """The histograms of these tensors over each part of the samples, and where their largest values are."""
    session = observed(model, names, folder, exact=False)
    peaks = [Peaks(batch.min) for _ in parts]
    found = [
        gathered(session, names, batches, counted=True, batch=batch, peaks=seen)
        for batches, seen in zip(parts, peaks, strict=True)
    ]
    return found, peaks


def observed(
    model: onnx.ModelProto, names: Sequence[str], folder: Path, *, exact: bool
) -> OrtModel | None:
    """A session of the graph that gives these tensors; None if they are all inputs of the graph.

    Parameters:
        exact: compute each operator as it stands alone, to the bit. ONNX Runtime else arranges tensors for
            the processor's vectors, which is faster and rounds differently.
    """
    given = {value.name for value in model.graph.input}
    made = [name for name in names if name not in given]
    if not made:
        return None
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made
    )
    level: Optimisation = "extended" if exact else "all"
    with files.written(seen, folder / "observed.onnx") as file:
        return OrtModel(file, optimisation=level, providers=fastest_providers())


def held_out(count: int, block: int) -> NDArray[np.bool_]:
    """Marks the samples that methods are judged by: of every four blocks one, by a seeded draw.

    It depends on the samples' number and order alone. Not every fourth: files may repeat in some order.

    Parameters:
        block: samples that stay together, since the model runs no smaller batch.
    """
    blocks = count // block
    marks = np.zeros(blocks, bool)
    rng = np.random.default_rng(_SEED)
    for start in range(0, blocks, _HELD_OUT):
        drawn = start + int(rng.integers(_HELD_OUT))
        if drawn < blocks:
            marks[drawn] = True
    if blocks > 1 and not marks.any():
        marks[-1] = True
    found = np.zeros(count, bool)
    found[: blocks * block] = np.repeat(marks, block)
    return found


def batches_of(
    samples: Arrays, batch: Batch, size: int, which: NDArray[np.bool_]
) -> Iterator[Arrays]:
    """The marked samples in batches; a remainder smaller than the model's smallest batch is dropped."""
    rows = np.flatnonzero(which)
    for start in range(0, len(rows), size):
        taken = rows[start : start + size]
        if len(taken) >= batch.min:
            yield batch.take(samples, taken)
