"""Loads untrusted TorchScript: only modules that were checked in full and use only allowed operators.

First the archive is scanned (``workers.programs.script_archive``), so that nothing in it runs on loading.
Then PyTorch compiles it, and every function and method is checked, with all nested blocks: not the source,
where a name can be spelled in many ways, but the graph that will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.jit._recursive import wrap_cpp_module

from workers.graphs.check import brief
from workers.programs import enumerations, operators, script_archive, script_records

#: Parts of type names whose values are native objects, or belong to other threads or machines.
_FOREIGN = ("__torch__.torch.classes", "RRef[", "Future[", "Await[", "Capsule", "PyObject")
#: Types whose fields are read by position, unchecked at run time.
_BY_POSITION = ("__torch__", "Tuple[", "NamedTuple(")
_CASTS = ("prim::unchecked_cast", "prim::unchecked_unwrap_optional")


class Refused(ValueError):
    """The module contains something that the farm doesn't run."""


class Unreadable(ValueError):
    """PyTorch can't load the module."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A checked module; none of it has run yet."""

    module: Any  #: a ``torch.jit.ScriptModule``
    operators: frozenset[str]  #: ``aten`` operators it may call, by name
    extra: Mapping[str, str]  #: the requested extra files: name → text


def load(path: Path, extra: Iterable[str] = ()) -> Script:
    """Load a module on the CPU.

    Parameters:
        extra: names of extra text files to read.

    Raises:
        Refused, Unreadable
    """
    try:
        script_archive.scan(path)
    except script_records.RefusedArchive as err:
        raise Refused(str(err)) from err
    unit = torch._C.CompilationUnit()
    beside = dict.fromkeys(extra, "")
    try:
        load_ir: Any = torch._C.import_ir_module  # Any: its stub lacks the last argument
        compiled = load_ir(unit, str(path), torch.device("cpu"), beside, True)
        functions = _functions(unit)
        nodes = [node for function in functions for node in _nodes(function.graph)]
    except Exception as err:  # the reader and the compiler raise RuntimeError and other types
        raise Unreadable(brief(err)) from err
    for node in nodes:
        _check(node)
    try:
        enumerations.check(functions, nodes)
    except enumerations.Unknown as err:
        raise Refused(str(err)) from err
    named = (node.kind() for node in nodes)
    called = {kind.removeprefix("aten::") for kind in named if kind.startswith("aten::")}
    texts = {
        name: text.decode(errors="replace") if isinstance(text, bytes) else text
        for name, text in beside.items()
    }
    wrap: Any = wrap_cpp_module  # without types of its own
    return Script(module=wrap(compiled), operators=frozenset(called), extra=texts)


def _functions(unit: Any) -> list[Any]:
    """All functions and methods. Compiling one may add others."""
    compiled: list[Any] = []
    while len(functions := unit.get_functions()) > len(compiled):
        for function in functions[len(compiled) :]:
            _ = function.graph
            compiled.append(function)
    return compiled


def _nodes(block: Any) -> Iterator[Any]:
    """The nodes of a graph, including its blocks."""
    waiting = [block]
    while waiting:
        for node in waiting.pop().nodes():
            yield node
            waiting += node.blocks()


def _check(node: Any) -> None:
    kind = node.kind()
    if not operators.may_run(kind, node.schema()):
        schema = node.schema()
        named = schema.partition("(")[0] if schema.startswith(kind) else kind
        raise Refused(f"it calls {named}, which isn't allow-listed")
    types = [value.type().annotation_str for value in [*node.inputs(), *node.outputs()]]
    for foreign in _FOREIGN:
        if any(foreign in one for one in types):
            raise Refused(f"it contains a {foreign.strip('[')}, which only native code understands")
    if kind in _CASTS and not _is_narrowing(types[0], types[-1]):
        raise Refused(f"it takes a {types[0]} for a {types[-1]} unchecked")


def _is_narrowing(given: str, made: str) -> bool:
    """Whether a cast narrows to one of a value's declared types, or is checked at run time."""
    if given == made or not any(part in made for part in _BY_POSITION):
        return True
    return given == f"Optional[{made}]"
