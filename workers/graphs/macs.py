"""Multiply-accumulates of a convolution or a matrix product, from the sizes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx

Dims = Mapping[str, tuple[int, ...] | None]
"""Tensor → its shape, or None where a size isn't known."""
Leading = Mapping[str, tuple[int, ...]]
"""Tensor → the sizes of its first axes, up to one that isn't known."""

#: Operators that multiply integers → the positions of their two operands.
INTEGER_OPERATORS = {
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}
RECURRENT = ("GRU", "LSTM", "RNN")
#: The position of an Attention's optional past key.
_PAST_KEY = 4


def macs_of(node: onnx.NodeProto, dims: Dims, leading: Leading) -> int | None:
    """The multiply-accumulates of a product; None if a size they depend on is unknown."""
    if node.op_type == "Attention":
        return _macs_of_attention(node, dims)
    if node.op_type == "Einsum":
        return _macs_of_einsum(_equation(node), [dims.get(name) for name in node.input])
    if node.op_type in RECURRENT:
        return _macs_of_recurrent(node, dims, leading)
    left, right = (dims.get(name) for name in operands_of(node))
    made = dims.get(node.output[0])
    if left is None or right is None or made is None:
        return None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return prod(made) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(made) * (left[-2] if transposed else left[-1])


def operands_of(node: onnx.NodeProto) -> tuple[str, str]:
    """The names of the two tensors that a product multiplies."""
    left, right = INTEGER_OPERATORS.get(node.op_type, (0, 1))
    return node.input[left], node.input[right]


def contracts(node: onnx.NodeProto) -> bool:
    """Whether an Einsum sums along an axis shared by its operands."""
    equation = _equation(node)
    given, arrow, made = equation.partition("->")
    letters = {letter for letter in given if letter.isalpha() and given.count(letter) > 1}
    return bool(letters - set(made)) if arrow else bool(letters)


def _macs_of_attention(node: onnx.NodeProto, dims: Dims) -> int | None:
    """Queries times keys, plus the result times values."""
    query, key, value = (dims.get(name) for name in node.input[:3])
    if query is None or key is None or value is None:
        return None
    length = key[-2]
    if len(node.input) > _PAST_KEY and node.input[_PAST_KEY]:
        past = dims.get(node.input[_PAST_KEY])
        if past is None:
            return None
        length += past[-2]
    if len(query) == 4:  # [batch, heads, length, size]
        return prod(query[:3]) * length * (query[3] + value[3])
    heads = {a.name: int(a.i) for a in node.attribute}
    kv_heads = heads.get("kv_num_heads")
    if not kv_heads:
        return None
    of_values = heads.get("q_num_heads", 0) * value[2] // kv_heads
    return query[0] * query[1] * length * (query[2] + of_values)


def _macs_of_recurrent(node: onnx.NodeProto, dims: Dims, leading: Leading) -> int | None:
    """Weights are [directions, gates × hidden, inputs or hidden]; layout 1 is batch first."""
    weights, recurrence = (dims.get(name) for name in node.input[1:3])
    # After a Reshape the last size may be unknown; the weights have it.
    sequence = leading.get(node.input[0], ())
    if len(sequence) < 2 or weights is None or recurrence is None:
        return None
    return sequence[0] * sequence[1] * (prod(weights) + prod(recurrence))


def _macs_of_einsum(equation: str, operands: Sequence[tuple[int, ...] | None]) -> int | None:
    """For two operands: one per combination of indices. For more it depends on their order."""
    terms = equation.partition("->")[0].split(",")
    if len(operands) != 2 or len(terms) != 2:
        return None
    sizes: dict[str, int] = {}
    for term, dims in zip(terms, operands, strict=True):
        if dims is None:
            return None
        before, dots, after = term.partition("...")
        spread = len(dims) - len(before) - len(after)
        if spread < 0 or (spread and not dots):
            return None
        # An ellipsis broadcasts its axes, so they are counted from the last.
        names = [*before, *(f".{n}" for n in range(spread, 0, -1)), *after]
        for name, size in zip(names, dims, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return prod(sizes.values())


def _equation(node: onnx.NodeProto) -> str:
    found = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    return found.replace(" ", "")
