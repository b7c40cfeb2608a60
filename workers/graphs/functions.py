"""A model's functions: what they would be written out, found without writing them out."""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

import onnx

from farm.errors import InvalidModel
from workers.graphs.walk import all_nodes

#: Far beyond any model's; forty functions that each call the next one twice are 10¹² operators.
MAX_OPERATORS = 1_000_000
_HINT = "export the model without functions, or with fewer calls of them"

_Name = tuple[str, str, str]  #: domain, name, overload


def refuse_costly(model: onnx.ModelProto) -> None:
    """Refuse functions that can't be inlined, before the inliner fills the memory with them.

    Raises:
        InvalidModel: one calls itself, or they expand to too many operators.
    """
    known = {_name(one.domain, one.name, one.overload): one for one in model.functions}
    calls = {name: _calls(function) for name, function in known.items()}
    try:
        # Those that call none come first.
        order = list(
            TopologicalSorter(
                {name: found.keys() & known.keys() for name, found in calls.items()}
            ).static_order()
        )
    except CycleError as err:
        circle = " → ".join(f"{name!r}"[:80] for _, name, _ in err.args[1][:5])
        raise InvalidModel(f"functions of the model call themselves: {circle}", hint=_HINT) from err
    sizes: dict[_Name, int] = {}
    for name in order:
        sizes[name] = _size(calls[name], sizes)
    size = _size(_calls(model.graph), sizes)
    if size > MAX_OPERATORS:
        raise InvalidModel(
            f"the model's functions, written out, are more than {MAX_OPERATORS:,} operators",
            hint=_HINT,
        )


def _calls(body: onnx.GraphProto | onnx.FunctionProto) -> Counter[_Name]:
    return Counter(_name(one.domain, one.op_type, one.overload) for one in all_nodes(body))


def _size(calls: Counter[_Name], sizes: dict[_Name, int]) -> int:
    """Operators, each called function written out; bounded, as numbers of a million digits are costly too."""
    return min(sum(count * sizes.get(name, 1) for name, count in calls.items()), MAX_OPERATORS + 1)


def _name(domain: str, name: str, overload: str) -> _Name:
    return ("" if domain == "ai.onnx" else domain, name, overload)
