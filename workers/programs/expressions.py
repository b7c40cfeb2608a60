"""Checks a program's symbolic sizes: only arithmetic that sympy may evaluate."""

from __future__ import annotations

import ast
import re
from typing import NoReturn

from farm.errors import InvalidModel

_SYMBOL = re.compile(r"\w+|-?\d+(\.\d+)?(e[+-]?\d+)?")  # s0, 3, '0.5', True

#: torch counts up to the number in such a symbol.
_UNBACKED = re.compile(r"z?u[fi]?\d{7,}")

#: Longest expression of one size.
_MAX_EXPRESSION = 4096

#: sympy evaluates these eagerly: a large power fills the memory.
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})

_MAX_POWER = 64

_MAX_POWERS = 2

_SYMBOLIC_CALLS = frozenset(
    """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs And Or Not Eq Ne Lt Le Gt Ge
    Mod Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan floor
    ceiling FloorDiv CleanDiv CeilDiv IntTrueDiv FloatTrueDiv ModularIndexing PythonMod
    Where TruncToInt TruncToFloat RoundToInt RoundDecimal FloorToInt CeilToInt ToFloat
    PowByNatural FloatPow LShift RShift BitwiseFn_bitwise_and BitwiseFn_bitwise_or
    Identity IsNonOverlapping OpaqueUnaryFn_sqrt OpaqueUnaryFn_log2 OpaqueUnaryFn_exp
    Half One Zero NegativeOne
    """.split()
)

_SYMBOLIC_NODES = (
    ast.Expression,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def check_expression(text: str) -> None:
    """Refuse anything but arithmetic on symbols: sympy evaluates what it parses."""
    if len(text) > _MAX_EXPRESSION or _UNBACKED.search(text):
        _refuse_expression(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse_expression(text)
    powers = 0
    for node in ast.walk(tree):
        if not isinstance(node, _SYMBOLIC_NODES):
            _refuse_expression(text)
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _SYMBOLIC_CALLS
        ):
            _refuse_expression(text)
        if isinstance(node, ast.Constant) and not _is_symbol(node.value):
            _refuse_expression(text)
        if (exponent := _exponent(node)) is not None:
            powers += 1
            if powers > _MAX_POWERS or not _is_small(exponent):
                _refuse_expression(text)


def _is_symbol(value: object) -> bool:
    return bool(_SYMBOL.fullmatch(str(value))) and not (
        isinstance(value, int) and abs(value) >= 1 << 64
    )


def _exponent(node: ast.AST) -> ast.expr | None:
    """The exponent of a power, or the distance of a shift."""
    match node:
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=exponent):
            return exponent
        case ast.Call(func=ast.Name(id=name), args=[_, exponent]) if name in _POWERS:
            return exponent
        case ast.Call(func=ast.Name(id=name)) as call if name in _POWERS:
            return call  # by keyword, which nothing emits: refuse it
    return None


def _is_small(exponent: ast.expr) -> bool:
    """Whether it is a small number, including ``Integer(2)`` and ``Rational(1, 2)``."""
    numbers = [node.value for node in ast.walk(exponent) if isinstance(node, ast.Constant)]
    plain = all(isinstance(one, int | float) and abs(one) <= _MAX_POWER for one in numbers)
    calls = (node for node in ast.walk(exponent) if isinstance(node, ast.Call))
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    is_flat = not any(isinstance(node, ast.BinOp) for node in ast.walk(exponent))
    return plain and bool(numbers) and names <= {"Integer", "Float", "Rational"} and is_flat


def _refuse_expression(text: str) -> NoReturn:
    raise InvalidModel(
        f"{text[:80]!r} isn't a symbolic size",
        hint="export again with torch.export.Dim for the dynamic axes",
    )
