"""Types, layouts and memory formats are bare numbers in TorchScript, and PyTorch uses them as members of its
enumerations unchecked: an invalid one indexes past function tables. So such a number must come from PyTorch
itself, or be a literal in the code that names a member.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.export import ExportedProgram

#: An argument's C++ type → how many of its members CPU tensors may have.
_MEMBERS = {"ScalarType": 16, "Layout": 6, "MemoryFormat": 4}
_OBJECTS = (torch.dtype, torch.layout, torch.memory_format, type(None))
#: Call node → inputs before the first argument.
_CALLS = {"prim::CallFunction": 1, "prim::CallMethod": 0}


class Unknown(ValueError):
    """A number used as a member of an enumeration may not be one."""


def check(functions: Iterable[Any], nodes: Iterable[Any]) -> None:
    """Check all uses in a module.

    Parameters:
        functions: all of the module's functions.
        nodes: the nodes of all their graphs, including nested blocks.

    Raises:
        Unknown
    """
    known = list(nodes)
    flow = _Flow(functions, known)
    for node in known:
        for value, kind in zip(node.inputs(), _kinds(node.schema()), strict=False):
            if kind and not flow.is_member(value, kind):
                raise Unknown(f"{node.kind()} takes a number for a {kind} that may not be one")


def check_program(program: ExportedProgram) -> None:
    """Check all uses in a ``torch.export`` program, where members are Python objects.

    Raises:
        Unknown
    """
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in graph.nodes if isinstance(graph, torch.fx.Graph) else ():
            if isinstance(node.target, torch._ops.OpOverload):
                _check_call(node)


def _check_call(node: torch.fx.Node) -> None:
    arguments: Any = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((one.name for one in arguments), node.args, strict=False)) | node.kwargs
    for one, kind in zip(arguments, map(_kind, arguments), strict=True):
        if kind and not isinstance(given.get(one.name), _OBJECTS):
            raise Unknown(f"{node.target} takes a number for a {kind} that may not be one")


@cache
def _kinds(schema: str) -> tuple[str, ...]:
    """Each argument's enumeration; empty for none."""
    if not any(word in schema for word in (*_MEMBERS, "dtype")):
        return ()
    arguments: Any = torch._C.parse_schema(schema).arguments
    return tuple(map(_kind, arguments))


def _kind(argument: Any) -> str:
    declared = str(argument.real_type)
    if argument.name == "dtype" and declared in (
        "int",
        "Optional[int]",
    ):  # in some overloads of aten::to
        return "ScalarType"
    return next((kind for kind in _MEMBERS if kind in declared), "")


class _Flow:
    """Traces where the values of a module's arguments come from."""

    def __init__(self, functions: Iterable[Any], nodes: Iterable[Any]) -> None:
        self._calls: dict[str, list[Any]] = defaultdict(list)
        for node in nodes:
            if node.kind() in _CALLS:
                self._calls[_called(node)].append(node)
        self._parameters = {one.graph.param_node(): one for one in functions}

    def is_member(self, value: Any, kind: str) -> bool:
        waiting, seen = [value], {value}
        while waiting:
            sources = self._sources(waiting.pop(), kind)
            if sources is None:
                return False
            waiting += [one for one in sources if one not in seen]
            seen |= set(sources)
        return True

    def _sources(self, value: Any, kind: str) -> list[Any] | None:
        """The values to check further: an empty list for a valid member, None if it may be anything."""
        node = value.node()
        match node.kind():
            case "prim::Constant":
                return [] if _is_named(value.toIValue(), kind) else None
            case "prim::dtype" | "prim::layout":
                return []
            case "prim::unchecked_cast" | "prim::unchecked_unwrap_optional":
                return [node.input()]
            case "prim::If":
                at = list(node.outputs()).index(value)
                return [list(block.outputs())[at] for block in node.blocks()]
            case "prim::Param" if node in self._parameters:
                return self._arguments(self._parameters[node], list(node.outputs()).index(value))
        return None

    def _arguments(self, function: Any, at: int) -> list[Any] | None:
        """The arguments for a parameter at every call of a function with that name. Outside callers only call
        ``forward``."""
        if function.name == "forward":
            return None
        return [
            list(node.inputs())[at + _CALLS[node.kind()]] for node in self._calls[function.name]
        ]


def _called(node: Any) -> str:
    if node.kind() == "prim::CallMethod":
        return str(node.s("name"))
    return str(node.inputsAt(0).node().s("name"))


def _is_named(value: Any, kind: str) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value < _MEMBERS[kind])
