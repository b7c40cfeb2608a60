"""Operators that the user keeps in floats, or quantised: by patterns over their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import onnx

from farm.errors import CalibrationFailed
from farm.specs.accuracy_goal import Pins
from workers.goals.units import Units, name_of
from workers.graphs.compute import PRODUCTS

_NEAR = 5
#: Names are compared by their characters, which takes long for many.
_MOST_COMPARED = 2000


def pinned(model: onnx.ModelProto, units: Units, pins: Pins) -> tuple[set[str], set[str]]:
    """The units that stay in floats, and those that stay quantised.

    Raises:
        CalibrationFailed: a pattern matches nothing, or both kinds name the same operator.
    """
    names = [name_of(node) for node in model.graph.node if node.op_type in PRODUCTS]
    names += [unit.name for unit in units.all if not unit.is_product]
    floats, quantized = (
        set(_matched(units, given, names)) for given in (pins.floats, pins.quantized)
    )
    known = {unit.name for unit in units.all}
    for pattern in pins.quantized:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise CalibrationFailed(
                f"{pattern!r} is to stay quantised, and nothing that it matches can be quantised",
                hint=_hint(pattern, sorted(known)),
            )
    both = sorted(unit.name for unit in units.all if unit.id in floats & quantized)
    if both:
        raise CalibrationFailed(
            f"{both[0]!r} is to stay in floats and to stay quantised",
            hint="make one of the two patterns narrower",
        )
    return floats, quantized


def _matched(units: Units, patterns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise CalibrationFailed(
                f"no convolution, matrix product or quantised tensor is called {pattern!r}",
                hint=_hint(pattern, names),
            )
        yield from (unit.id for unit in units.all if fnmatchcase(unit.name, pattern))


def _hint(pattern: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))[:_MOST_COMPARED]
    near = get_close_matches(pattern, known, n=_NEAR, cutoff=0.3) or known[:_NEAR]
    listed = ", ".join(repr(name[:100]) for name in near)
    return f"near it are {listed}; `farm inspect` names an engine's products; * and ? match any characters"
