"""The ranges of a graph's values over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import onnx

from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations, thresholds


def fitting(
    source: onnx.ModelProto,
    quantized: onnx.ModelProto,
    batches: Callable[[], Iterable[Arrays]],
    folder: Path,
    names: Sequence[str],
    *,
    batch: Batch | None = None,
) -> dict[str, float]:
    """The magnitude up to which each of these tensors of ``quantized`` errs least if it is rounded.

    Up to the largest one, most levels of a convolution's result would be spent on a few values.

    Parameters:
        batches: reads the data anew; one batch is in memory at a time.
        folder: for the graph that gives them.
        batch: lets batches run in pieces, as far as their results are large.
    """
    # ModelOpt may have renamed some; if not, running the source is several times faster.
    there = {name for node in source.graph.node for name in node.output}
    model = source if there.issuperset(names) else quantized
    session = activations.observed(model, names, folder, exact=False)
    found = activations.gathered(session, names, batches(), counted=True, batch=batch)
    return {name: thresholds.least_error(found[name]) for name in names}
