"""Byte inputs, as cameras deliver them, for TensorRT, which can do nothing with uint8 but cast it.

A graph that moves the bytes first and casts them afterwards becomes one that casts first. The values
stay the same: all 256 are exact in every target type.
"""

from __future__ import annotations

from collections import defaultdict

import onnx
from onnx import TensorProto, helper

from workers.graphs import walk

#: Operators that only move the values of their first input; their other inputs say where.
_MOVES = (
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Gather",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
    "Split",
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def cast_first(model: onnx.ModelProto) -> list[str]:
    """Cast byte inputs before they are moved, in place. Returns the names of the inputs changed.

    Leaves an input alone unless everything moved from it is finally cast to floats.
    """
    graph = model.graph
    changed = []
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        found = _moved(graph, value.name)
        if found is None:
            continue
        moves, casts = found
        if not moves:
            continue
        _rewrite(graph, value.name, moves, casts)
        changed.append(value.name)
    if changed:
        del graph.value_info[:]  # it still declares the moved values as bytes
    return changed


def _moved(
    graph: onnx.GraphProto, name: str
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
    """The nodes that move an input's bytes and those that cast them; None if other nodes use them."""
    users: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        # A body may use tensors from outside it.
        inside = walk.all_nodes(onnx.GraphProto(node=[node]))
        for given in dict.fromkeys(name for one in inside for name in one.input):
            users[given].append(node)
    made = {value.name for value in graph.output}
    moves: list[onnx.NodeProto] = []
    casts: list[onnx.NodeProto] = []
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in made:
            return None
        for node in users[one]:
            if node.op_type == "Cast":
                if next(a.i for a in node.attribute if a.name == "to") not in _FLOATS:
                    return None
                casts.append(node)
            elif node.op_type in _MOVES and node.input[0] == one and one not in node.input[1:]:
                moves.append(node)
                waiting += node.output
            elif node.op_type == "Shape":  # its output isn't bytes
                moves.append(node)
            else:
                return None
    return moves, casts


def _rewrite(
    graph: onnx.GraphProto, name: str, moves: list[onnx.NodeProto], casts: list[onnx.NodeProto]
) -> None:
    kind = next(
        (a.i for cast in casts for a in cast.attribute if a.name == "to"), TensorProto.FLOAT
    )
    first = f"{name}_as_floats"
    for node in [*moves, *casts]:
        node.input[:] = [first if given == name else given for given in node.input]
    cast = helper.make_node("Cast", [name], [first], name=f"{first}_cast", to=kind)
    graph.node.insert(0, cast)
