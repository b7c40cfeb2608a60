"""Finds the weights that a ``torch.export`` program multiplies by, and the axis it sums over.

A program keeps no layers: the weights of convolutions and linear layers are found by the operators that
take them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from workers.graphs.compute import Compute, Product

aten = torch.ops.aten

#: Operator → the position of its weights, and the axis of the weights that it sums over.
_PRODUCTS = {
    aten.linear: (1, -1),
    aten.conv1d: (1, 1),
    aten.conv2d: (1, 1),
    aten.conv3d: (1, 1),
    aten.convolution: (1, 1),
    aten.conv_transpose1d: (1, 0),
    aten.conv_transpose2d: (1, 0),
    aten.conv_transpose3d: (1, 0),
    aten.matmul: (1, -2),
    aten.mm: (1, -2),
    aten.bmm: (1, -2),
    aten.addmm: (2, -2),
    aten.baddbmm: (2, -2),
}
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
#: Operators that only reorder a tensor's axes.
_TURNS = (aten.t, aten.transpose, aten.permute, aten.numpy_T, aten.mT)
_SAME = (aten.detach, aten.alias, aten.contiguous, aten.clone)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter that is only used as a factor in products."""

    name: str  #: in the program's state
    axis: int  #: the axis the products sum over: the input channels


def weights(program: ExportedProgram) -> tuple[list[Weight], dict[str, str]]:
    """The weights of convolutions and matrix products, and for other parameters of that rank, why not."""
    found: list[Weight] = []
    others: dict[str, str] = {}
    names = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        name = names.get(node.name) if node.op == "placeholder" else None
        if name is None or program.state_dict[name].ndim < 2:
            continue
        rank = program.state_dict[name].ndim
        axes = set(_axes(node, tuple(range(rank))))
        wrong = sorted(use for use in axes if isinstance(use, str))
        if wrong:
            others[name] = f"{', '.join(wrong)} takes it" + " too" * (len(axes) > len(wrong))
        elif len(axes) == 1:
            found += [Weight(name=name, axis=axis) for axis in axes if isinstance(axis, int)]
        else:
            others[name] = "products sum over two axes of it" if axes else "nothing takes it"
    return found, others


def _axes(node: Node, order: tuple[int, ...]) -> Iterator[int | str]:
    """For each use of a tensor: the axis that the product sums over, or the operator if it isn't a product.

    Parameters:
        order: for each axis of this tensor, the axis of the parameter.
    """
    for user in node.users:
        packet = getattr(user.target, "overloadpacket", None)
        if packet in _SAME:
            yield from _axes(user, order)
        elif packet in _TURNS:
            yield from _axes(user, _turned(user, packet, order))
        elif packet in _PRODUCTS and _takes_as_weight(user, node):
            transposed = packet is aten.convolution and user.args[6]
            yield order[0 if transposed else _PRODUCTS[packet][1]]
        else:
            yield str(user.target)


def _takes_as_weight(user: Node, node: Node) -> bool:
    position, _ = _PRODUCTS[user.target.overloadpacket]  # type: ignore[union-attr]
    return [at for at, given in enumerate(user.args) if given is node] == [position]


def _turned(user: Node, packet: object, order: tuple[int, ...]) -> tuple[int, ...]:
    given: Any = user.args[1:]
    if packet is aten.permute:
        return tuple(order[axis] for axis in given[0])
    if packet is aten.numpy_T:
        return order[::-1]
    one, other = given if packet is aten.transpose else (-2, -1)
    turned = list(order)
    turned[one], turned[other] = turned[other], turned[one]
    return tuple(turned)


def compute_of_program(program: ExportedProgram) -> Compute:
    """The products of a program, each in its own type; their numbers of multiplications aren't known."""
    made = [
        Product(
            name=node.name,
            op_type=str(node.target),
            type=_TYPES.get(node.meta["val"].dtype, str(node.meta["val"].dtype)),
            macs=None,
            not_quantized=(),
        )
        for node in program.graph.nodes
        if getattr(node.target, "overloadpacket", None)
        in (*_PRODUCTS, aten.scaled_dot_product_attention)
    ]
    return Compute(products=made)
