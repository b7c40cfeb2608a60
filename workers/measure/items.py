"""Compares outputs whose size depends on the data, such as a detector's, item by item, as sets.

One more box in fp16 doesn't make another model. Outputs of the same length belong together: a box, its
score and its class are one item. Two items match when their integers are equal and their floats within a
tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[np.generic]]

#: How far apart two items' floats may be, as a share of the source's largest value in that column.
TOLERANCE = 0.05
#: Only this many items are compared: the cost is quadratic.
MAX_ITEMS = 2000


def varying(expected: Outputs, actual: Outputs) -> dict[str, int]:
    """The outputs with the same rank but different shapes: output → first axis that differs."""
    return {
        name: next(a for a, size in enumerate(array.shape) if size != actual[name].shape[a])
        for name, array in expected.items()
        if name in actual and actual[name].ndim == array.ndim and actual[name].shape != array.shape
    }


@dataclass(frozen=True, kw_only=True)
class Group:
    """Outputs that together form one list of items."""

    names: tuple[str, ...]
    axis: int  #: the axis that counts the items


def groups(axes: Mapping[str, int], expected: Outputs, actual: Outputs) -> Iterator[Group]:
    """Group outputs with the same lengths along the axis that counts their items."""
    found: dict[tuple[int, int, int], list[str]] = {}
    for name, axis in sorted(axes.items()):
        lengths = expected[name].shape[axis], actual[name].shape[axis]
        found.setdefault((axis, *lengths), []).append(name)
    for (axis, _, _), names in found.items():
        yield Group(names=tuple(names), axis=axis)


def matched(group: Group, expected: Outputs, actual: Outputs) -> float:
    """The share of both sides' items that have a match in the other, 0 to 1; 1 without items."""
    left, right = (_columns(group, outputs) for outputs in (expected, actual))
    count = len(left.floats), len(right.floats)
    if max(count) == 0:
        return 1.0
    if min(count) == 0 or left.floats.shape[1] != right.floats.shape[1]:
        return 0.0
    return 2.0 * _pairs(left, right) / sum(count)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Items as rows."""

    floats: NDArray[np.float64]
    integers: NDArray[np.int64]


def _columns(group: Group, outputs: Outputs) -> _Columns:
    rows = []
    for name in group.names:
        array = np.moveaxis(outputs[name], group.axis, 0)[:MAX_ITEMS]
        rows.append(array.reshape(len(array), prod(array.shape[1:])))
    none = np.empty((len(rows[0]), 0))
    floats = [row.astype(np.float64) for row in rows if row.dtype.kind in "fV"]
    integers = [row.astype(np.int64) for row in rows if row.dtype.kind not in "fV"]
    return _Columns(
        floats=np.concatenate([none, *floats], axis=1),
        integers=np.concatenate([none.astype(np.int64), *integers], axis=1),
    )


def _pairs(left: _Columns, right: _Columns) -> int:
    """Count one-to-one matches, closest first."""
    finite = np.where(np.isfinite(left.floats), left.floats, 0.0)
    scale = np.maximum(np.abs(finite).max(axis=0), 1e-6)
    candidates: list[tuple[float, int, int]] = []
    for number, row in enumerate(left.floats):
        same = (right.integers == left.integers[number]).all(axis=1)
        with np.errstate(invalid="ignore"):
            apart = np.abs(right.floats - row) / scale
        apart[np.isnan(right.floats) & np.isnan(row)] = 0.0
        distance = np.nan_to_num(apart, nan=np.inf).max(axis=1, initial=0.0)
        near = np.flatnonzero(same & (distance <= TOLERANCE))
        candidates += [(float(distance[other]), number, int(other)) for other in near]
    taken_left: set[int] = set()
    taken_right: set[int] = set()
    for _, one, other in sorted(candidates):
        if one not in taken_left and other not in taken_right:
            taken_left.add(one)
            taken_right.add(other)
    return len(taken_left)
