"""Normalises programs for the stages: every input and every output is a tensor with a unique name.

Authors' programs take and return nested containers, caches, sizes, numbers, None, or one tensor twice.
The computation stays the same; containers become names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from farm.errors import InvalidModel

#: Tensor types for the sizes, numbers and booleans that a program computes.
_SCALARS: dict[type, torch.dtype] = {
    SymIntArgument: torch.int64,
    SymFloatArgument: torch.float32,
    SymBoolArgument: torch.bool,
}


def plain_program(
    program: ExportedProgram, fixed: Mapping[str, NDArray[np.generic]] | None = None
) -> dict[str, str]:
    """Flatten a program's inputs and outputs in place; return what was left out and why.

    Inputs are tensors, in call order; an input for which the program records a single constant value is
    left out. Outputs are a dict of tensors by name; a computed size becomes a scalar tensor, and None and
    constant numbers are left out.

    Parameters:
        fixed: input → its constant value; it stops being an input.

    Raises:
        InvalidModel: naming the input or the output that can't be a tensor.
    """
    _plain_inputs(program, fixed or {})
    left_out = _plain_outputs(program)
    program.graph.lint()
    program.graph_module.recompile()
    # These describe the original signature.
    program._guards_code = []
    program._example_inputs = None
    return left_out


def _plain_inputs(program: ExportedProgram, fixed: Mapping[str, NDArray[np.generic]]) -> None:
    specs: list[InputSpec] = []
    names: list[str] = []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            specs.append(spec)
            continue
        if isinstance(spec.arg, ConstantArgument):
            _drop_constant(program.graph, node, spec.arg.value)
            continue
        if not isinstance(spec.arg, TensorArgument):
            raise InvalidModel(
                f"the program's input {node.name!r} is a size, not a tensor",
                hint="export it with a fixed size there, or take it from a tensor's shape",
            )
        if node.name in fixed:
            target = f"fixed_{node.name}"
            program.constants[target] = torch.from_numpy(np.array(fixed[node.name]))
            spec = InputSpec(InputKind.CONSTANT_TENSOR, spec.arg, target)
        else:
            names.append(node.name)
        specs.append(spec)
    program.graph_signature.input_specs = specs
    signature = _signature(program)
    signature.in_spec = pytree.tree_structure(((0,) * len(names), {}))
    signature.forward_arg_names = names


def _drop_constant(graph: fx.Graph, node: fx.Node, value: Any) -> None:
    """Drop the input; its users, if any, get the value itself."""
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda one: value if one is node else one)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda one: value if one is node else one)
    graph.erase_node(node)


def _plain_outputs(program: ExportedProgram) -> dict[str, str]:
    graph, signature = program.graph, program.graph_signature
    [end] = [node for node in graph.nodes if node.op == "output"]
    pairs = list(zip(end.args[0], signature.output_specs, strict=True))
    mutations = [pair for pair in pairs if pair[1].kind is not OutputKind.USER_OUTPUT]
    given = [pair for pair in pairs if pair[1].kind is OutputKind.USER_OUTPUT]
    paths = _paths(_signature(program).out_spec, len(given))
    kept: list[tuple[tuple[Any, ...], fx.Node]] = []
    left_out: dict[str, str] = {}
    for path, (value, spec) in zip(paths, given, strict=True):
        if isinstance(value, fx.Node):
            taken = [node for _, node in kept]
            kept.append((path, _own_tensor(graph, end, value, type(spec.arg), taken)))
        elif value is not None:
            left_out[_joined(path)] = f"it is always {value!r}"
    if not kept:
        raise InvalidModel(
            "none of the program's outputs is a tensor",
            hint="return at least one tensor from the model's forward",
        )
    inputs = [str(name) for name in signature.user_inputs]
    names = _distinct(_names([path for path, _ in kept]), inputs)
    end.args = (tuple([value for value, _ in mutations] + [node for _, node in kept]),)
    signature.output_specs = [spec for _, spec in mutations] + [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for _, node in kept
    ]
    _signature(program).out_spec = pytree.tree_structure(dict.fromkeys(names, 0))
    return left_out


def _own_tensor(
    graph: fx.Graph, end: fx.Node, node: fx.Node, kind: type, taken: Sequence[fx.Node]
) -> fx.Node:
    """A tensor that is only this output: not another output, an input or a weight."""
    with graph.inserting_before(end):
        if kind in _SCALARS:
            made = graph.call_function(
                torch.ops.aten.scalar_tensor.default, (node,), {"dtype": _SCALARS[kind]}
            )
            made.meta = {"val": torch.empty((), dtype=_SCALARS[kind], device="meta")}
            return made
        if node not in taken and node.op != "placeholder":
            return node
        made = graph.call_function(torch.ops.aten.clone.default, (node,))
        made.meta = dict(node.meta)
        return made


def _paths(spec: Any, count: int) -> list[tuple[Any, ...]]:
    """The keys and positions that lead to each leaf."""
    if spec is None:
        return [(index,) for index in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), spec)
    return [
        tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)
        for path, _ in pytree.tree_flatten_with_path(tree)[0]
    ]


def _names(paths: Sequence[tuple[Any, ...]]) -> list[str]:
    """``output``, or ``output_0`` … for a flat sequence; otherwise the keys and positions of each path."""
    if all(len(path) == 0 or (len(path) == 1 and isinstance(path[0], int)) for path in paths):
        return numbered_outputs(len(paths))
    return [_joined(path) for path in paths]


def _joined(path: tuple[Any, ...]) -> str:
    parts = [re.sub(r"\W+", "_", str(part)) for part in path]
    named = bool(path) and isinstance(path[0], str) and re.match(r"[A-Za-z_]", parts[0])
    return "_".join(parts if named else ["output", *parts])


def _distinct(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Rename outputs that share a name with an input or another output."""
    seen, made = set(taken), []
    for name in names:
        while name in seen:
            name = f"{name}_out"
        seen.add(name)
        made.append(name)
    return made


def _signature(program: ExportedProgram) -> Any:
    return program.module_call_graph[0].signature


def numbered_outputs(count: int) -> list[str]:
    """``output``, or ``output_0`` … for several."""
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
