"""Statistics of a graph's activations, gathered in one pass in which only one batch is in memory.

ONNX Runtime runs the graph with the wanted tensors as outputs. Histograms add up exactly
(``workers.quantize.histograms``), so what comes out depends neither on the size of the batches nor on which
samples share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from workers.backends.ort.cpu import Optimisation, OrtModel, cpu_threads, fastest_providers
from workers.graphs import files
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize.histograms import Histogram

#: One in so many samples is held out, to judge a method by.
_HELD_OUT = 4
_SEED = 0

Statistics = dict[str, Histogram]


def gathered(
    session: OrtModel | None, names: Sequence[str], batches: Iterable[Arrays], *, counted: bool
) -> Statistics:
    """The histogram of each of these tensors over the batches.

    Parameters:
        session: gives those of these tensors that aren't inputs of the graph: see ``observed``.
        counted: whether histograms are wanted, or only minima and maxima.
    """
    found = {name: Histogram.empty(counted=counted) for name in names}

    def add(name: str, made: Arrays) -> None:
        found[name].add(made[name].astype(np.float32, copy=False))

    with ThreadPoolExecutor(cpu_threads()) as threads:
        for batch in batches:
            made = batch if session is None else batch | session.run(batch)
            list(threads.map(add, names, repeat(made)))
    return found


def of_parts(
    model: onnx.ModelProto,
    names: Sequence[str],
    parts: Iterable[Iterable[Arrays]],
    folder: Path,
    *,
    counted: bool,
) -> list[Statistics]:
    """The statistics of these tensors over each part of the samples.

    Extremes alone are exact to the bit: see ``observed``.
    """
    session = observed(model, names, folder, exact=not counted)
    return [gathered(session, names, batches, counted=counted) for batches in parts]


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
    file = folder / "observed.onnx"
    files.write_model(seen, file)
    level: Optimisation = "extended" if exact else "all"
    try:
        return OrtModel(file, optimisation=level, providers=fastest_providers())
    finally:
        for path in (file, file.with_name(f"{file.name}.data")):
            path.unlink(missing_ok=True)


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
