"""Finds the inputs and weights that a program writes to."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch._ops import OpOverload

#: Operators that may return what they are given, though their schemas don't say so.
_MAY_ALIAS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def written(graph: fx.Graph) -> Iterator[fx.Node]:
    """The inputs and weights that a graph writes to, itself or through views. A region's aren't found."""
    roots: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            roots[node] = {node}
        elif not isinstance(node.target, OpOverload):
            roots[node] = _of_all(node, roots)
        else:
            yield from _by(node, node.target, roots)
            returned = node.target._schema.returns
            if node.target._opname in _MAY_ALIAS or any(one.alias_info for one in returned):
                roots[node] = _of_all(node, roots)


def _of_all(node: fx.Node, roots: dict[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    return {root for one in node.all_input_nodes for root in roots.get(one, ())}


def _by(
    node: fx.Node, operator: OpOverload, roots: dict[fx.Node, set[fx.Node]]
) -> Iterator[fx.Node]:
    """What this operator writes to."""
    arguments = operator._schema.arguments
    given = dict(zip((one.name for one in arguments), node.args, strict=False)) | node.kwargs
    for one in arguments:
        value = given.get(one.name)
        if isinstance(value, fx.Node) and one.alias_info is not None and one.alias_info.is_write:
            yield from roots.get(value, ())
