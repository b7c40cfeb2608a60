"""A program's operators as the layers of an engine built from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from farm.reports.layers import Layer, LayerTensor


def layers_of(program: ExportedProgram) -> list[Layer]:
    """A layer for each operator, in order."""
    return [
        Layer(
            name=node.name,
            type=str(node.target),
            inputs=[tensor for given in node.all_input_nodes for tensor in made_by(given)],
            outputs=made_by(node),
        )
        for node in program.graph.nodes
        if node.op == "call_function"
    ]


def made_by(node: Any) -> list[LayerTensor]:
    """The tensor that a node makes, if it makes one; a dynamic axis is -1."""
    made: Any = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(made, torch.Tensor):
        return []
    shape = [size if isinstance(size, int) else -1 for size in made.shape]
    return [LayerTensor(name=node.name, type=str(made.dtype).removeprefix("torch."), shape=shape)]
