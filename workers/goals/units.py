"""What a Q/DQ graph may compute in floats again, one by one: its units, and the graph without some of them.

A unit is a quantised product (a convolution or a matrix product), or the pair of a tensor that others read.
An edge is where an operator reads a dequantised tensor. It is quantised while any of its units is: a product
that reads it; and the convolution that makes it, whose integer kernels give integers, so that the loss of
rounding its result is its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from workers.graphs import walk
from workers.graphs.compute import PRODUCTS

#: Operators between a DequantizeLinear and its product that leave its values as they are.
_PASSED = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
#: What may be between a convolution and its rounding.
_CLIPS = ("Relu", "Clip")
_OPERANDS = 2


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a graph that is quantised, or isn't, as a whole.

    Parameters:
        id: the first output of a product's node; ``pair`` and its name for a tensor.
        name: the node's, or the tensor's.
    """

    id: str
    name: str
    is_product: bool


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An operator's input that is a dequantised tensor.

    Parameters:
        consumer: the first output of the operator.
        position: among its inputs.
        tensor: what is quantised: an activation, or weights.
    """

    consumer: str
    position: int
    dequantized: str
    tensor: str
    is_constant: bool
    units: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Units:
    """A graph's units, in its order, and the edges between them."""

    all: Sequence[Unit]
    edges: Sequence[Edge]

    @property
    def products(self) -> list[Unit]:
        return [unit for unit in self.all if unit.is_product]

    def renamed(self, tensors: Mapping[str, str]) -> Units:
        """The same with other tensors where nothing is quantised: weights that were rounded have others."""
        edges = [replace(one, tensor=tensors.get(one.tensor, one.tensor)) for one in self.edges]
        return replace(self, edges=edges)


def units_of(model: onnx.ModelProto) -> Units:
    """The units of a graph as ModelOpt has quantised it, weights still in floats before their Q."""
    return _Finder(model.graph).found()


def without(model: onnx.ModelProto, units: Units, floats: Collection[str]) -> onnx.ModelProto:
    """A copy of the graph in which these units compute in floats: their edges have no Q/DQ."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    consumers = {node.output[0]: node for node in made.graph.node if node.output}
    for edge in units.edges:
        if edge.units <= set(floats):
            consumers[edge.consumer].input[edge.position] = edge.tensor
    drop_unread_pairs(made.graph)
    return made


def drop_unread_pairs(graph: onnx.GraphProto) -> None:
    """Drop the Q/DQ that nothing reads, and their constants."""
    for kind in reversed(walk.QDQ_OPS):
        read = {name for node in walk.all_nodes(graph) for name in node.input}
        read |= {value.name for value in graph.output}
        gone = {
            node.output[0]
            for node in graph.node
            if node.op_type == kind and node.output[0] not in read
        }
        walk.drop_nodes(graph, lambda node, gone=gone: node.output[0] in gone)  # type: ignore[misc]
    walk.drop_unused(graph)


class _Finder:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in set(node.input):
                self._consumers[name].append(node)
        self._products = {
            node.output[0]: Unit(id=node.output[0], name=name_of(node), is_product=True)
            for node in graph.node
            if node.op_type in PRODUCTS and self._is_quantized(node)
        }

    def found(self) -> Units:
        edges = list(self._edges())
        pairs = {
            f"pair {edge.tensor}": Unit(
                id=f"pair {edge.tensor}", name=edge.tensor, is_product=False
            )
            for edge in edges
        }
        used = dict.fromkeys(one for edge in edges for one in sorted(edge.units))
        known: Mapping[str, Unit] = pairs | self._products
        return Units(all=[known[one] for one in used], edges=edges)

    def _edges(self) -> Iterator[Edge]:
        for node in self._graph.node:
            if node.op_type in walk.QDQ_OPS or not node.output:
                continue
            for position, name in enumerate(node.input):
                tensor = self._behind(name)
                if tensor is None:
                    continue
                is_constant = tensor in self._constants
                yield Edge(
                    consumer=node.output[0],
                    position=position,
                    dequantized=name,
                    tensor=tensor,
                    is_constant=is_constant,
                    units=self._units(node, tensor, is_constant=is_constant),
                )

    def _behind(self, name: str) -> str | None:
        """The tensor that a Q/DQ pair rounds, if this is its result."""
        dequantize = self._makers.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        quantize = self._makers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return None
        return str(quantize.input[0])

    def _units(self, node: onnx.NodeProto, tensor: str, *, is_constant: bool) -> frozenset[str]:
        found = set(self._read_by(node))
        if not is_constant:
            maker = self._convolution(tensor)
            if maker in self._products:
                found.add(maker)
        return frozenset(found or {f"pair {tensor}"})

    def _read_by(self, node: onnx.NodeProto) -> Iterator[str]:
        """The quantised products that read a value here, or behind operators that only move it."""
        if node.output[0] in self._products:
            yield node.output[0]
        elif node.op_type in _PASSED:
            for one in self._consumers[node.output[0]]:
                yield from self._read_by(one)

    def _convolution(self, tensor: str) -> str:
        """The convolution that makes a tensor, also before its activation; else nothing."""
        maker = self._makers.get(tensor)
        if (
            maker is not None
            and maker.op_type in _CLIPS
            and len(self._consumers[maker.input[0]]) == 1
        ):
            maker = self._makers.get(maker.input[0])
        return str(maker.output[0]) if maker is not None and maker.op_type == "Conv" else ""

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        return len(node.input) >= _OPERANDS and all(
            self._is_dequantized(name) for name in node.input[:_OPERANDS]
        )

    def _is_dequantized(self, name: str) -> bool:
        node = self._makers.get(name)
        while node is not None and node.op_type in _PASSED:
            node = self._makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"


def name_of(node: onnx.NodeProto) -> str:
    """As ``farm inspect`` names it."""
    return str(node.name or node.output[0])
