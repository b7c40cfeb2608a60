"""Reads the code in a TorchScript archive: classes whose defaults and constants are literals."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from workers.programs.script_records import RefusedArchive

_TEXT = re.compile(r'(?<![\w"])"(?:[^"\\\n]|\\[^\n])*"(?!")', re.ASCII)

#: Code with its string literals removed: no comments, other quotes or line continuations.
_CODE = re.compile(r"[A-Za-z0-9_ \n()\[\]{}.,:=<>!+\-*/%@&|^~]*")

#: Functions that a default may call: they build a value from literals.
_MAKERS = frozenset({"annotate", "torch.device"})


@dataclass(frozen=True, kw_only=True)
class Class:
    """A class in the archive's code."""

    base: str  #: ``Module``, ``NamedTuple``, ``Enum``, ``Interface``; empty for a plain class
    attributes: dict[str, ast.expr]  #: name → type; constants excluded


def read_code(name: str, content: bytes) -> dict[str, Class]:
    """The classes in a file of code, by their qualified names.

    Python's parser reads it here, PyTorch's will later: it is refused unless both see the same tokens.
    """
    try:
        text = content.decode("ascii")
        if not _CODE.fullmatch(_TEXT.sub(" ", text)):
            raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
        tree = ast.parse(text)
    except (UnicodeError, SyntaxError, ValueError, RecursionError, MemoryError) as err:
        if isinstance(err, RefusedArchive):
            raise
        raise RefusedArchive(f"{name} in it can't be read as TorchScript") from err
    module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            _check_function(name, node)
        if isinstance(node, ast.ClassDef):
            found[f"{module}.{node.name}"] = _read_class(name, node)
    return found


def _check_function(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
    if isinstance(node, ast.Lambda | ast.AsyncFunctionDef) or node.decorator_list:
        raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
    if node.name == "__setstate__":
        raise RefusedArchive(f"{name} in it has code that runs when it is loaded: __setstate__")
    for default in [*node.args.defaults, *node.args.kw_defaults]:
        _check_literal(name, default)


def _read_class(name: str, node: ast.ClassDef) -> Class:
    attributes: dict[str, ast.expr] = {}
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=attribute), annotation=kind, value=value):
                _check_literal(name, value)
                if not (isinstance(kind, ast.Subscript) and dotted(kind.value) == "Final"):
                    attributes[attribute] = kind
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(), slice=ast.Constant(value=str(attribute)))],
                value=kind,
            ):
                _check_literal(name, kind)
                attributes[attribute] = kind  # names such as "0" aren't identifiers
            case ast.Assign(targets=[ast.Name()], value=value):
                _check_literal(name, value)
            case ast.FunctionDef() | ast.Pass():
                pass
            case _:
                raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
    bases = [dotted(base) for base in node.bases]
    return Class(base=bases[0] if bases else "", attributes=attributes)


def _check_literal(name: str, node: ast.expr | None) -> None:
    """Allow only values built from literals: PyTorch evaluates these expressions as it loads."""
    match node:
        case None | ast.Constant() | ast.Name():
            return
        case ast.Attribute() if dotted(node):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant() | ast.Name()):
            return
        case ast.Tuple(elts=inner) | ast.List(elts=inner):
            parts: list[ast.expr | None] = [*inner]
        case ast.Dict(keys=keys, values=values):
            parts = [*keys, *values]
        case ast.Subscript(value=value, slice=index):  # a type
            parts = [value, index]
        case ast.Call(func=func, args=arguments, keywords=[]) if dotted(func) in _MAKERS:
            parts = [*arguments]
        case _:
            raise RefusedArchive(
                f"{name} in it has code that runs when it is loaded: {ast.unparse(node)[:80]!r}"
            )
    for part in parts:
        _check_literal(name, part)


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for such an expression, otherwise an empty string."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if inner := dotted(value):
            return f"{inner}.{name}"
    return ""
