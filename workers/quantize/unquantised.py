"""Explains why ModelOpt quantised nothing in a graph, and what to do about it.

Source: modelopt/onnx/quantization of nvidia-modelopt 0.47: graph_utils skips matrices with a side below
``_MIN_MATMUL_DIM``, and products with vectors; bodies are never visited.
"""

from __future__ import annotations

from collections import Counter

import onnx

from workers.graphs import shapes, walk
from workers.graphs.compute import PRODUCTS
from workers.graphs.macs import RECURRENT

_SMALLEST_SIDE = 16
_BY_SIZE = f"have a side below {_SMALLEST_SIDE}"
_BY_VECTOR = "multiply by a vector, as a batch of one is"
_RECURS = "recur (GRU, LSTM, RNN)"


def reasons(model: onnx.ModelProto) -> tuple[str, str]:
    """What happened to the graph's products, and what to do about it, in words."""
    counts: Counter[str] = Counter()
    sizes = sizes_of(model)
    for node in model.graph.node:
        for inner in (one for body in walk.bodies(node) for one in walk.all_nodes(body)):
            if inner.op_type in PRODUCTS:
                counts[f"are in the body of {node.op_type} {node.name or node.output[0]!r}"] += 1
        if node.op_type in RECURRENT:
            counts[_RECURS] += 1
        elif node.op_type in PRODUCTS:
            sides = [side for name in node.input for side in sizes.get(name, [])[-2:]]
            is_small = (
                node.op_type in ("Gemm", "MatMul") and min(sides, default=16) < _SMALLEST_SIDE
            )
            counts[_BY_SIZE if is_small else _BY_VECTOR] += 1
    said = "; ".join(f"{count} {why}" for why, count in counts.items())
    return said or "it has none", _what_to_do(model, counts)


def sizes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor → its known sizes."""
    graph = shapes.inferred_of(model).graph
    values = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value]
        for value in (*graph.value_info, *graph.input)
    }
    return values | {tensor.name: list(tensor.dims) for tensor in walk.tensors_of(model)}


def _what_to_do(model: onnx.ModelProto, counts: Counter[str]) -> str:
    hint = "choose fp16"
    if any(node.op_type == "If" for node in model.graph.node):
        hint += (
            "; or, where an input chooses the branch, fix it, and what is left can be quantised: "
            "--fix NAME=VALUE"
        )
    if _BY_VECTOR in counts:
        hint += "; or calibrate with a larger batch_size"
    return hint
