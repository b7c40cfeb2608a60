"""Small ONNX graphs that several tests build on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def small_graph(
    path: Path,
    *nodes: onnx.NodeProto,
    shape: Sequence[int | str | None] = ("n", 4),
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """A graph from ``x`` to ``y`` of the given nodes."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    graph.output[0].type.tensor_type.shape.Clear()
    for _ in shape:
        graph.output[0].type.tensor_type.shape.dim.add()
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), str(path))
    return path


def matmul(path: Path, **options: Any) -> Path:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return small_graph(path, node, weights=weights, **options)
