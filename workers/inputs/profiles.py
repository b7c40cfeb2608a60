"""Completes optimization profiles and checks them against a graph's inputs."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal, NamedTuple

from pydantic import ValidationError

from farm.errors import ProfileMismatch
from farm.reports.records import first_of
from farm.specs.batch_axes import batch_symbol
from farm.specs.shapes import ANONYMOUS, Profile, ShapeRange, TensorSpec, ValueRange
from workers.inputs.batch import Shapes, Sizes, sizes_of

#: Batch sizes (min, opt, max) for a model with a dynamic batch and no profile.
DEFAULT_BATCH = (1, 8, 64)

Which = Literal["min", "opt", "max"]


class AxisRange(NamedTuple):
    """What a source declares about a dynamic axis."""

    min: int
    example: int  #: the size it was exported with
    max: int | None  #: None if unbounded

    def __str__(self) -> str:
        return f"{self.min} to {self.max}" if self.max else f"{self.min} or more"


#: Axis name → range; for an input whose values are sizes, ``NAME[0]`` … → range of the value.
AxisRanges = Mapping[str, AxisRange]


def resolve_profiles(
    inputs: Sequence[TensorSpec], profiles: Sequence[Profile], ranges: AxisRanges | None = None
) -> tuple[Profile, ...]:
    """Give every profile a range for every input, in input order.

    A dynamic axis of an input that a profile omits gets the first of these that applies:

    - the sizes that the profile gives an axis of the same name
    - for the batch (any position), or the first axis of an input without one: the others' batch sizes, or
      1, 8 and 64 within its range
    - the range declared by its source, with the exported size as the optimal one
    - sizes computed from other axes, for a name such as ``past + sequence``

    Static models need no profile.

    Raises:
        ProfileMismatch: names the input and the axis that doesn't fit.
    """
    if not inputs:
        raise ProfileMismatch("the model has no inputs", hint="submit a model with inputs")
    return tuple(_resolve(inputs, profile, ranges or {}) for profile in (profiles or ({},)))


def shapes_at(profile: Profile, which: Which) -> Shapes:
    """The shape of every input at the profile's smallest, optimal or largest size."""
    return {name: getattr(shapes, which) for name, shapes in profile.items()}


def _resolve(inputs: Sequence[TensorSpec], profile: Profile, ranges: AxisRanges) -> Profile:
    known = {spec.name: spec for spec in inputs}
    for name, shapes in profile.items():
        if name not in known:
            raise ProfileMismatch(
                f"the profile names the input {name!r}, which the model doesn't have",
                hint=f"the model's inputs are {', '.join(known)}",
            )
        _check(known[name], shapes, ranges)
    resolved = _Defaults(known, profile, ranges).resolved()
    resolved = {name: _with_values(name, one, ranges) for name, one in resolved.items()}
    _check_shared_axes(inputs, resolved)
    _refuse_no_samples(inputs, resolved)
    return resolved


def value_ranges(name: str, values: Sequence[int]) -> dict[str, AxisRange]:
    """Ranges for ``resolve_profiles`` of an input whose values are sizes."""
    return {f"{name}[{n}]": AxisRange(value, value, value) for n, value in enumerate(values)}


def _with_values(name: str, shapes: ShapeRange, ranges: AxisRanges) -> ShapeRange:
    """The shapes with the values that the source was run with, if the profile has none."""
    found = [ranges[f"{name}[{n}]"] for n in range(prod(shapes.opt)) if f"{name}[{n}]" in ranges]
    if shapes.values is not None or not found or len(found) != prod(shapes.opt):
        return shapes
    low, mid, high = zip(
        *((one.min, one.example, one.max or one.example) for one in found), strict=True
    )
    return shapes.model_copy(update={"values": ValueRange(min=low, opt=mid, max=high)})


def _check(spec: TensorSpec, shapes: ShapeRange, ranges: AxisRanges) -> None:
    if len(shapes.opt) != len(spec.shape):
        raise ProfileMismatch(
            f"input {spec.name!r} has {len(spec.shape)} axes {_text(spec)}, "
            f"but its profile has {len(shapes.opt)}",
            hint=f"pass {len(spec.shape)} sizes each for min, opt and max",
        )
    if shapes.values and len(shapes.values.opt) != prod(shapes.opt):
        raise ProfileMismatch(
            f"input {spec.name!r} has {prod(shapes.opt)} values, but its profile {len(shapes.values.opt)}",
            hint=f"pass {prod(shapes.opt)} values each for min, opt and max",
        )
    for axis, size in enumerate(spec.shape):
        asked = set(sizes_of(shapes, axis))
        told = f"but the profile asks for {', '.join(map(str, sorted(asked)))}"
        if isinstance(size, int) and asked != {size}:
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} is always {size}, {told}",
                hint=f"set axis {axis} to {size}, or export the model with that axis dynamic",
            )
        allowed = ranges.get(str(size))
        if allowed and not allowed.min <= min(asked) <= max(asked) <= (allowed.max or max(asked)):
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} was exported for {allowed}, {told}",
                hint="stay within that range, or export the model with other bounds: torch.export.Dim",
            )


class _Defaults:
    """Ranges for what a profile omits, by axis name."""

    def __init__(
        self, known: Mapping[str, TensorSpec], profile: Profile, ranges: AxisRanges
    ) -> None:
        self._known = known
        self._profile = profile
        self._ranges = ranges
        self._symbol = batch_symbol(list(known.values()))
        self._sizes = _given_axes(known, profile)
        self._batch = self._sizes.get(self._symbol or "") or _given_batch(known, profile)

    def resolved(self) -> Profile:
        for spec in self._known.values():
            for axis, size in enumerate(spec.shape):
                found = self._plain(spec, axis, size) if isinstance(size, str) else None
                if found and size != ANONYMOUS:
                    self._sizes.setdefault(str(size), found)
        return {
            name: self._profile[name] if name in self._profile else self._range(spec)
            for name, spec in self._known.items()
        }

    def _plain(self, spec: TensorSpec, axis: int, size: str) -> Sizes | None:
        """Sizes that aren't computed from other axes."""
        if size in self._sizes:
            return self._sizes[size]
        if size == self._symbol or (axis == 0 and self._symbol not in spec.shape):
            return self._batch or _within(DEFAULT_BATCH, self._ranges.get(size))
        if size in self._ranges and (largest := self._ranges[size].max) is not None:
            return self._ranges[size].min, self._ranges[size].example, largest
        return None

    def _range(self, spec: TensorSpec) -> ShapeRange:
        axes: list[Sizes] = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                axes.append((size, size, size))
                continue
            found = computed(size, self._sizes) or self._plain(spec, axis, size)
            if found is None:
                raise ProfileMismatch(
                    f"axis {axis} of input {spec.name!r} is dynamic {_text(spec)}, "
                    "and no profile gives its sizes",
                    hint=f"pass a profile with min, opt and max shapes for {spec.name!r}",
                )
            axes.append(found)
        low, mid, high = zip(*axes, strict=True) if axes else ((), (), ())
        try:
            return ShapeRange(min=low, opt=mid, max=high)
        except ValidationError as err:  # sizes beyond any runtime's
            raise ProfileMismatch(
                f"the sizes of input {spec.name!r} {_text(spec)} make no profile: {first_of(err)}",
                hint=f"pass a profile with min, opt and max shapes for {spec.name!r}, or export the model "
                "with other sizes",
            ) from err


_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def computed(name: str, sizes: Mapping[str, Sizes]) -> Sizes | None:
    """The sizes of an axis whose name is an expression of others, such as ``past + 2*sequence``.

    None if the name isn't one, or uses an axis whose sizes aren't known.
    """
    if name in sizes:
        return None
    try:
        tree = ast.parse(name, mode="eval").body
        low, mid, high = (
            _value(tree, {other: given[which] for other, given in sizes.items()})
            for which in range(3)
        )
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError):
        return None
    return (low, mid, high) if 0 <= low <= mid <= high else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, sizes), _value(node.right, sizes)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError("it isn't arithmetic on sizes")


def _within(sizes: Sizes, allowed: AxisRange | None) -> Sizes:
    """Clamp sizes to an axis's range. A bound of 1000 is no reason to build for 1000."""
    if allowed is None:
        return sizes
    low, high = allowed.min, allowed.max or max(*sizes, allowed.min)
    low, mid, high = (min(max(size, low), high) for size in sizes)
    return low, mid, high


def _given_axes(known: Mapping[str, TensorSpec], profile: Profile) -> dict[str, Sizes]:
    """The sizes that a profile gives to named axes."""
    return {
        size: sizes_of(shapes, axis)
        for name, shapes in profile.items()
        for axis, size in enumerate(known[name].shape)
        if isinstance(size, str) and size != ANONYMOUS
    }


def _given_batch(known: Mapping[str, TensorSpec], profile: Profile) -> Sizes | None:
    for name, shapes in profile.items():
        shape = known[name].shape
        if shape and isinstance(shape[0], str):
            return sizes_of(shapes, 0)
    return None


def _check_shared_axes(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    """Check that axes with the same name, which have the same size at run time, have the same range."""
    seen: dict[str, tuple[str, int, Sizes]] = {}
    for spec in inputs:
        shapes = profile[spec.name]
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int) or size == ANONYMOUS:
                continue
            sizes = sizes_of(shapes, axis)
            other = seen.setdefault(size, (spec.name, axis, sizes))
            if other[2] != sizes:
                raise ProfileMismatch(
                    f"axis {axis} of input {spec.name!r} and axis {other[1]} of input {other[0]!r} "
                    f"are the same axis {size!r}, but their ranges {sizes} and {other[2]} differ",
                    hint="use the same min, opt and max for both",
                )


def _refuse_no_samples(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    symbol = batch_symbol(inputs)
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if size == symbol and size != ANONYMOUS and profile[spec.name].min[axis] == 0:
                raise ProfileMismatch(
                    f"axis {axis} of input {spec.name!r} is the batch, but the profile starts at 0",
                    hint="start at 1; only other axes may have length 0, such as a cache's",
                )


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
