"""Walks an ONNX graph, the bodies of its operators included, and removes what nothing uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import onnx
import onnx.shape_inference

QDQ_OPS = ("QuantizeLinear", "DequantizeLinear")


def all_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph or a function, including those in subgraphs."""
    for node in graph.node:
        yield node
        for nested in bodies(node):
            yield from all_nodes(nested)


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """A model's graph and all bodies, each after the graph that contains it."""
    yield model.graph
    for node in all_nodes(model.graph):
        yield from bodies(node)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a model, including those in bodies."""
    for graph in graphs_of(model):
        yield from graph.initializer


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node runs: the branches of an If, the body of a Loop or Scan."""
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
    ]


def parameter_count(model: onnx.ModelProto) -> int:
    """The number of weights in the graph."""
    return sum(prod(tensor.dims) for tensor in tensors_of(model))


def qdq_pairs(model: onnx.ModelProto) -> int:
    """The number of dequantised tensors: activations as Q/DQ pairs, weights as Q/DQ or DQ alone."""
    return sum(node.op_type == "DequantizeLinear" for node in all_nodes(model.graph))


def is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in QDQ_OPS for node in all_nodes(model.graph))


def take_out_given(model: onnx.ModelProto) -> dict[int, onnx.ValueInfoProto]:
    """Remove outputs that are inputs from a model. Returns them by position.

    They are legal, but few tools support them.
    """
    given = {value.name for value in model.graph.input}
    taken = {at: v for at, v in enumerate(model.graph.output) if v.name in given}
    copies = {at: onnx.ValueInfoProto.FromString(v.SerializeToString()) for at, v in taken.items()}
    drop(model.graph.output, lambda value: value.name in given)
    return copies


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop initializers that nothing uses."""
    used = {name for node in all_nodes(graph) for name in node.input}
    used |= {value.name for value in graph.output}
    drop(graph.initializer, lambda tensor: tensor.name not in used)
    for node in graph.node:
        for body in bodies(node):
            drop_unused(body)


def drop_nodes(graph: onnx.GraphProto, is_dropped: Callable[[onnx.NodeProto], bool]) -> None:
    """Drop the nodes that match, except those in subgraphs."""
    drop(graph.node, is_dropped)


def drop(field: Any, is_dropped: Callable[[Any], bool]) -> None:
    """Drop matching messages from a repeated field in place; rebuilding it would copy the others."""
    for index in reversed(range(len(field))):
        if is_dropped(field[index]):
            del field[index]
