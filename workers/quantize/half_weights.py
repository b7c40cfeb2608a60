"""Engines for CPUs that keep weights in fp16 and compute in fp32.

x86 has no kernels for fp16: ONNX Runtime casts back and forth around every operator, and its layout
optimiser crashes on some of the resulting graphs. An fp16 engine for ``cpu`` therefore has fp32 operators
and half the bytes: any session that loads it folds the weights' casts before it optimises anything else.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workers.graphs.floats import of_type
from workers.graphs.walk import graphs_of, tensors_of

#: Smaller tensors are scales, shapes and biases, which some operators require as constants.
_FEWEST = 1024
#: Half a step of an 11-bit mantissa; values outside the range of fp16 lose more.
_LARGEST_ERROR = 2.0**-11


def has_halves(model: onnx.ModelProto) -> bool:
    """Whether the model has weights in fp16."""
    return any(
        tensor.data_type == TensorProto.FLOAT16 and prod(tensor.dims) >= _FEWEST
        for tensor in tensors_of(model)
    )


def keep_in_halves(model: onnx.ModelProto) -> int:
    """Store the model's fp32 weights as fp16, each with a cast. Returns how many there are.

    Weights that fp16 can't hold are left alone: an element may be off by 2⁻¹¹ of the largest.
    """
    count = 0
    for graph in graphs_of(model):
        given = {value.name for value in (*graph.input, *graph.output)}
        casts = [
            _kept(tensor)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT and prod(tensor.dims) >= _FEWEST
            if tensor.name not in given and _fits(tensor)
        ]
        nodes = [*casts, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        count += len(casts)
    return count


def _fits(tensor: onnx.TensorProto) -> bool:
    value = numpy_helper.to_array(tensor)
    half = numpy_helper.to_array(of_type(tensor, TensorProto.FLOAT16, tensor.name))
    largest = float(np.abs(value).max())
    error = float(np.abs(half.astype(np.float32) - value).max())
    return bool(np.isfinite(value).all()) and error <= _LARGEST_ERROR * largest


def _kept(tensor: onnx.TensorProto) -> onnx.NodeProto:
    """Convert a weight to fp16. Returns the cast, which takes over the weight's name."""
    name = tensor.name
    tensor.CopyFrom(of_type(tensor, TensorProto.FLOAT16, f"{name}__fp16"))
    return helper.make_node(
        "Cast", [tensor.name], [name], name=f"{name}__cast", to=TensorProto.FLOAT
    )
