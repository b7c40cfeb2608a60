"""The ranges of a graph's values over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from workers.backends.ort.cpu import OrtModel
from workers.graphs import files
from workers.inputs.samples import Arrays


def largest(
    source: onnx.ModelProto,
    quantized: onnx.ModelProto,
    batches: Callable[[], Iterable[Arrays]],
    folder: Path,
    names: Sequence[str],
) -> dict[str, float]:
    """The largest magnitude of each of these tensors of ``quantized`` over the batches.

    Parameters:
        batches: reads the data anew; one batch is in memory at a time.
        folder: for the graph that measures them.
    """
    # ModelOpt may have renamed some; if not, running the source is several times faster.
    there = {name for node in source.graph.node for name in node.output}
    model = onnx.ModelProto()
    model.CopyFrom(source if there.issuperset(names) else quantized)
    graph = model.graph
    del graph.output[:]
    for index, name in enumerate(names):
        magnitude, most = f"magnitude_{index}", f"largest_{index}"
        graph.node.append(helper.make_node("Abs", [name], [magnitude]))
        graph.node.append(helper.make_node("ReduceMax", [magnitude], [most], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(most, TensorProto.FLOAT, []))
    file = folder / "largest.onnx"
    files.write_model(model, file)
    session = OrtModel(file)
    results = [session.run(batch) for batch in batches()]
    return {
        name: max(float(result[f"largest_{index}"]) for result in results)
        for index, name in enumerate(names)
    }
