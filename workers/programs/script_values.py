"""Checks pickled values of a TorchScript archive against the types that its code declares."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.programs.script_code import Class, dotted
from workers.programs.script_pickle import Instance
from workers.programs.script_records import RefusedArchive


@dataclass(frozen=True)
class Values:
    """Checks that pickled values have the types declared in the code.

    PyTorch doesn't check, and reads an object's attributes and a tuple's elements by position.
    """

    classes: Mapping[str, Class]
    _seen: set[int] = field(default_factory=set)
    #: keeps objects alive, so that no id is reused
    _kept: list[object] = field(default_factory=list)

    def check(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list | tuple | dict | Instance):
                if id(value) in self._seen:
                    continue
                self._seen.add(id(value))
                self._kept.append(value)
            waiting += self._inner(value)

    def _inner(self, value: Any) -> Iterator[Any]:
        if isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, dict):
            yield from value.keys()
            yield from value.values()
        elif isinstance(value, Instance):
            kind = self.classes.get(value.kind)
            if kind is None:
                raise RefusedArchive(f"there is no {value.kind[:80]!r} in its code")
            if kind.base == "Enum":
                return
            if not isinstance(value.state, dict):
                raise RefusedArchive(f"a {value.kind[:80]} in it isn't pickled by its attributes")
            for name, declared in kind.attributes.items():
                if name in value.state and not self._is_of(value.state[name], declared):
                    raise RefusedArchive(
                        f"{name[:80]!r} of a {value.kind[:80]} in it is of another type than declared"
                    )
            yield from value.state.values()

    def _is_of(self, value: Any, kind: ast.expr) -> bool:
        """Numbers, strings and tensors aren't checked here: PyTorch checks them itself."""
        match kind:
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                inner = index.elts if isinstance(index, ast.Tuple) else [index]
                return self._is_of_generic(value, name, inner)
            case ast.Name(id="Any"):
                return True
            case ast.Attribute():
                return self._is_of_class(value, dotted(kind))
        return isinstance(kind, ast.Name | ast.Constant) and not isinstance(value, tuple | Instance)

    def _is_of_generic(self, value: Any, name: str, inner: Sequence[ast.expr]) -> bool:
        if name == "Tuple":
            return (
                isinstance(value, tuple)
                and len(value) == len(inner)
                and all(map(self._is_of, value, inner))
            )
        if name in ("Optional", "Union"):
            return value is None or any(self._is_of(value, one) for one in inner)
        if name == "List":
            return isinstance(value, list) and all(self._is_of(one, inner[0]) for one in value)
        if name == "Dict" and len(inner) == 2:
            return isinstance(value, dict) and all(
                self._is_of(one, inner[0]) and self._is_of(of, inner[1])
                for one, of in value.items()
            )
        return False

    def _is_of_class(self, value: Any, name: str) -> bool:
        kind = self.classes.get(name)
        if kind is None:
            return False
        if kind.base == "NamedTuple":
            return self._is_of_generic(value, "Tuple", list(kind.attributes.values()))
        if kind.base in ("Interface", "ModuleInterface"):
            return isinstance(value, Instance)
        return isinstance(value, Instance) and value.kind == name
