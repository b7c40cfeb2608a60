"""Finds attention masks that hide nothing, whatever the inputs.

Libraries of models write one for each attention without a mask of its own. Kernels that take a mask are
slower; PyTorch's for a mask whose last stride isn't 1 hold the products in memory, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten

ATTENTION = aten.scaled_dot_product_attention.default
MASK, _NAME = 3, "attn_mask"  #: its position among the attention's arguments, and its name
#: A mask is a few operators on constants; more is a program of its own.
_MOST_OPERATORS, _MOST_NUMBERS = 64, 1 << 24


def mask_of(node: fx.Node) -> Any:
    """The mask that an attention is given, if any."""
    return node.args[MASK] if len(node.args) > MASK else node.kwargs.get(_NAME)


def weighed(node: fx.Node) -> list[fx.Node]:
    """A node's inputs but for an attention's mask."""
    if node.target is not ATTENTION:
        return node.all_input_nodes
    others = [*node.args[:MASK], *(one for name, one in node.kwargs.items() if name != _NAME)]
    return [one for one in others if isinstance(one, fx.Node)]


def with_mask(args: Sequence[Any], kwargs: Mapping[str, Any], take: Callable[[Any], Any]) -> Any:
    """An attention's arguments with what ``take`` makes of its mask."""
    made = tuple(take(one) if at == MASK else one for at, one in enumerate(args))
    return made, {name: take(one) if name == _NAME else one for name, one in kwargs.items()}


def for_kernels(mask: Any, dtype: torch.dtype | None) -> Any:
    """A mask as the fast kernels take it: with its lowest value within the type, and the last stride 1.

    A row of infinities would become NaN.
    """
    if not isinstance(mask, torch.Tensor):
        return mask
    if dtype is not None and mask.is_floating_point():
        mask = mask.clamp(min=torch.finfo(dtype).min)
    return mask if mask.dim() == 0 or mask.stride(-1) == 1 else mask.contiguous()


def open_attentions(
    graph: fx.Graph, read: Callable[[str], Any], written: frozenset[fx.Node]
) -> Iterator[fx.Node]:
    """The attentions whose mask is computed from constants alone, and hides nothing.

    Parameters:
        read: the tensor that the graph reads as this attribute.
        written: the attributes that the graph writes to.
    """
    known: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        mask = mask_of(node) if node.target is ATTENTION else None
        if isinstance(mask, fx.Node):
            if mask not in known:
                known[mask] = _hides_nothing(_unexpanded(mask), read, written)
            if known[mask]:
                yield node


def _unexpanded(mask: fx.Node) -> fx.Node:
    """The mask before it is repeated along axes, whose sizes may be the inputs'."""
    while mask.target is aten.expand.default and isinstance(mask.args[0], fx.Node):
        mask = mask.args[0]
    return mask


def _hides_nothing(mask: fx.Node, read: Callable[[str], Any], written: frozenset[fx.Node]) -> bool:
    needed = _constants(mask)
    if needed is None or not written.isdisjoint(needed):
        return False
    values: dict[fx.Node, Any] = {}
    try:
        for node in needed:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            is_read = node.op == "get_attr"
            values[node] = read(str(node.target)) if is_read else node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, MemoryError):  # then it isn't known
        return False
    found = values[mask]
    if not isinstance(found, torch.Tensor) or not 0 < found.numel() <= _MOST_NUMBERS:
        return False
    return bool((found if found.dtype is torch.bool else found == 0).all())


def _constants(mask: fx.Node) -> list[fx.Node] | None:
    """What the mask is computed from, in order; None if inputs, chance or writes have a part in it."""
    needed: set[fx.Node] = set()
    waiting = [mask]
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        if len(needed) == _MOST_OPERATORS or not (node.op == "get_attr" or _is_function(node)):
            return None
        needed.add(node)
        waiting += node.all_input_nodes
    return [node for node in mask.graph.nodes if node in needed]


def _is_function(node: fx.Node) -> bool:
    """Whether it gives the same for the same arguments, and changes none."""
    target = node.target
    return (
        node.op == "call_function"
        and isinstance(target, OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )
