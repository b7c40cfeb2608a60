"""The inputs of a graph that are looked up in a table, such as an embedding, and the table's size."""

from __future__ import annotations

import onnx
from onnx import helper

#: What passes an input's values on.
_PASS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_PASS_TABLE = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


def sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Input → how many rows the smallest table has that its values are looked up in, wherever it runs."""
    graph = model.graph
    tables = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    given = {value.name: value.name for value in graph.input if value.name not in tables}
    found: dict[str, int] = {}
    for node in graph.node:
        first = node.input[0] if node.input else ""
        if node.op_type in _PASS and first in given:
            given[node.output[0]] = given[first]
        if node.op_type in _PASS_TABLE and first in tables:
            tables[node.output[0]] = tables[first]
        if node.op_type != "Gather" or first not in tables or node.input[1] not in given:
            continue
        axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
        if -len(tables[first]) <= axis < len(tables[first]):
            name = given[node.input[1]]
            found[name] = min(tables[first][axis], found.get(name, tables[first][axis]))
    return found
