"""One session in which each unit of a Q/DQ graph is quantised or isn't, as its inputs say.

A product is in both branches of an If, once with each of its weights, and so is each activation that is
read, rounded or not. Weights stay constants, for which ONNX Runtime prepares its kernels, and what a unit
doesn't need isn't computed: a run with one unit quantised takes about as long as one in floats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.goals.units import Edge, Units, drop_unread_pairs
from workers.graphs import files
from workers.inputs.samples import Arrays


class Toggled:
    """A graph whose units are quantised by choice.

    Raises:
        InvalidModel: ONNX Runtime can't load it.
    """

    def __init__(self, model: onnx.ModelProto, units: Units, folder: Path) -> None:
        self._units = [unit.id for unit in units.all]
        with files.written(toggled(model, units), folder / "toggled.onnx") as file:
            self._session = OrtModel(file, providers=fastest_providers())

    def run(self, batch: Arrays, quantized: Collection[str]) -> Arrays:
        """The outputs for a batch with these units quantised, and no others."""
        chosen = set(quantized)
        toggles: Mapping[str, NDArray[np.generic]] = {
            _toggle(number): np.asarray(unit in chosen) for number, unit in enumerate(self._units)
        }
        return self._session.run({**batch, **toggles})


def toggled(model: onnx.ModelProto, units: Units) -> onnx.ModelProto:
    """A copy of the graph with an input for each unit, which quantises it if true."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _Rewriter(made.graph, units).rewrite()
    return made


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto, units: Units) -> None:
        self._graph, self._units = graph, units
        self._makers = {name: node for node in graph.node for name in node.output}
        self._toggles = {unit.id: _toggle(n) for n, unit in enumerate(units.all)}
        #: What is needed before a node: by the node's first output.
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._read: dict[tuple[str, frozenset[str]], str] = {}
        self._conditions: dict[frozenset[str], str] = {}

    def rewrite(self) -> None:
        consumers = {node.output[0]: node for node in self._graph.node if node.output}
        products = {unit.id for unit in self._units.products}
        weights: dict[str, list[Edge]] = {}
        for edge in self._units.edges:
            if edge.is_constant and edge.consumer in products:
                weights.setdefault(edge.consumer, []).append(edge)
            else:
                node = consumers[edge.consumer]
                node.input[edge.position] = self._value(edge)
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            first = node.output[0] if node.output else ""
            nodes += self._before.get(first, [])
            nodes.append(self._product(node, weights[first]) if first in weights else node)
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        for name in self._toggles.values():
            self._graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))
        drop_unread_pairs(self._graph)

    def _value(self, edge: Edge) -> str:
        """The tensor that an edge reads: rounded while one of its units is quantised."""
        key = edge.dequantized, edge.units
        if key not in self._read:
            number = len(self._read)
            before = self._before.setdefault(edge.consumer, [])
            condition = self._condition(edge.units, before)
            rounds = [self._makers[self._makers[edge.dequantized].input[0]]]
            rounds.append(self._makers[edge.dequantized])
            made = f"read_{number}"
            before.append(
                helper.make_node(
                    "If",
                    [condition],
                    [made],
                    name=made,
                    then_branch=_branch(f"{made}_rounded", _copies(rounds, f"{made}_rounded")),
                    else_branch=_branch(
                        f"{made}_plain",
                        [helper.make_node("Identity", [edge.tensor], [f"{made}_plain"])],
                    ),
                )
            )
            self._read[key] = made
        return self._read[key]

    def _condition(self, units: frozenset[str], before: list[onnx.NodeProto]) -> str:
        if units not in self._conditions:
            names = [self._toggles[one] for one in sorted(units)]
            found = names[0]
            for name in names[1:]:
                made = f"any_{len(self._conditions)}_{name}"
                before.append(helper.make_node("Or", [found, name], [made]))
                found = made
            self._conditions[units] = found
        return self._conditions[units]

    def _product(self, node: onnx.NodeProto, weights: list[Edge]) -> onnx.NodeProto:
        branches = {}
        for kind in ("rounded", "plain"):
            one = onnx.NodeProto.FromString(node.SerializeToString())
            for edge in weights:
                one.input[edge.position] = edge.dequantized if kind == "rounded" else edge.tensor
            one.output[0] = f"{node.output[0]}__{kind}"
            branches[kind] = _branch(one.output[0], [one])
        return helper.make_node(
            "If",
            [self._toggles[node.output[0]]],
            [node.output[0]],
            name=node.name,
            then_branch=branches["rounded"],
            else_branch=branches["plain"],
        )


def _copies(pair: list[onnx.NodeProto], made: str) -> list[onnx.NodeProto]:
    """A Q/DQ pair again, under names of its own."""
    quantize, dequantize = (onnx.NodeProto.FromString(one.SerializeToString()) for one in pair)
    quantize.output[0] = dequantize.input[0] = f"{made}_integers"
    dequantize.output[0] = made
    quantize.name, dequantize.name = f"{made}_q", f"{made}_dq"
    return [quantize, dequantize]


def _branch(made: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, made, [], [value])


def _toggle(number: int) -> str:
    return f"toggle__{number}"
