"""Optimization profiles against the inputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from farm.errors import ProfileMismatch
from farm.specs import ANONYMOUS, Profile, ShapeRange, TensorSpec

#: Batch sizes (min, opt, max) of a model with a dynamic batch and no profile.
DEFAULT_BATCH = (1, 8, 64)

Shapes = dict[str, tuple[int, ...]]
Sizes = tuple[int, int, int]  #: of an axis: smallest, optimal, largest
Which = Literal["min", "opt", "max"]


class AxisRange(NamedTuple):
    """What a source says of a dynamic axis."""

    min: int
    example: int  #: the size that it was exported with
    max: int | None  #: None where nothing bounds it

    def __str__(self) -> str:
        return f"{self.min} to {self.max}" if self.max else f"{self.min} or more"


#: By the axis's name.
AxisRanges = Mapping[str, AxisRange]


def resolve_profiles(
    inputs: Sequence[TensorSpec], profiles: Sequence[Profile], ranges: AxisRanges | None = None
) -> tuple[Profile, ...]:
    """Give every profile a range for every input, in the order of the inputs.

    A dynamic axis of an input that a profile leaves out has, in this order: the sizes that the profile
    gives an axis of the same name; the range that its source declared, with the size it was exported
    with as the optimal one; if it is the first axis, the batch of the others, or 1, 8 and 64 within
    its range. Static models need no profile.

    Raises:
        ProfileMismatch: naming the input and the axis that doesn't fit.
    """
    if not inputs:
        raise ProfileMismatch("the model has no inputs", hint="hand in a model with inputs")
    return tuple(_resolve(inputs, profile, ranges or {}) for profile in (profiles or ({},)))


def shapes_at(profile: Profile, which: Which) -> Shapes:
    """The shape of every input at the profile's smallest, optimal or largest size."""
    return {name: getattr(shapes, which) for name, shapes in profile.items()}


def batched_inputs(inputs: Sequence[TensorSpec], profile: Profile) -> tuple[str, ...]:
    """The inputs whose first axis is the batch; others are the same for every sample.

    Where a first axis is dynamic the batch is, and all with its range are batched; a static model's
    batch is the first axis of its first input.
    """
    firsts = {spec.name: _sizes(profile[spec.name], 0) for spec in inputs if spec.shape}
    dynamic = [s.name for s in inputs if s.name in firsts and isinstance(s.shape[0], str)]
    if not firsts:
        return ()
    batch = firsts[(dynamic or list(firsts))[0]]
    return tuple(name for name in dynamic or firsts if firsts[name] == batch)


def has_dynamic_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Whether an input's first axis is dynamic, so that samples can be batched at will."""
    return any(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)


def batch_range(inputs: Sequence[TensorSpec], profile: Profile) -> Sizes:
    """The profile's smallest, optimal and largest batch; 1, 1, 1 for a model of scalars."""
    batched = batched_inputs(inputs, profile)
    return _sizes(profile[batched[0]], 0) if batched else (1, 1, 1)


def shapes_at_batch(inputs: Sequence[TensorSpec], profile: Profile, batch: int) -> Shapes:
    """The opt shapes, with the batch of every input that has a dynamic one set to ``batch``."""
    shapes = shapes_at(profile, "opt")
    if has_dynamic_batch(inputs):
        for name in batched_inputs(inputs, profile):
            shapes[name] = (batch, *shapes[name][1:])
    return shapes


def profiles_as_json(profiles: Sequence[Profile]) -> list[dict[str, object]]:
    return [
        {name: shapes.model_dump(mode="json") for name, shapes in profile.items()}
        for profile in profiles
    ]


def _resolve(inputs: Sequence[TensorSpec], profile: Profile, ranges: AxisRanges) -> Profile:
    known = {spec.name: spec for spec in inputs}
    for name, shapes in profile.items():
        if name not in known:
            raise ProfileMismatch(
                f"the profile names the input {name!r}, which the model doesn't have",
                hint=f"the model's inputs are {', '.join(known)}",
            )
        _check(known[name], shapes, ranges)
    given = _given_axes(known, profile)
    batch = _given_batch(known, profile)
    resolved = {
        spec.name: profile[spec.name]
        if spec.name in profile
        else _default(spec, given, batch, ranges)
        for spec in inputs
    }
    _check_shared_axes(inputs, resolved)
    return resolved


def _check(spec: TensorSpec, shapes: ShapeRange, ranges: AxisRanges) -> None:
    if len(shapes.opt) != len(spec.shape):
        raise ProfileMismatch(
            f"input {spec.name!r} has {len(spec.shape)} axes {_text(spec)}, "
            f"and its profile has {len(shapes.opt)}",
            hint=f"give {len(spec.shape)} sizes each for min, opt and max",
        )
    for axis, size in enumerate(spec.shape):
        asked = set(_sizes(shapes, axis))
        told = f"and the profile asks for {', '.join(map(str, sorted(asked)))}"
        if isinstance(size, int) and asked != {size}:
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} is always {size}, {told}",
                hint=f"set axis {axis} to {size}, or export the model with that axis dynamic",
            )
        allowed = ranges.get(str(size))
        if allowed and not allowed.min <= min(asked) <= max(asked) <= (allowed.max or max(asked)):
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} was exported for {allowed}, {told}",
                hint="stay within, or export the model with other bounds: torch.export.Dim",
            )


def _default(
    spec: TensorSpec, given: Mapping[str, Sizes], batch: Sizes | None, ranges: AxisRanges
) -> ShapeRange:
    axes: list[Sizes] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            axes.append((size, size, size))
        elif size in given:
            axes.append(given[size])
        elif axis == 0:
            axes.append(batch or _within(DEFAULT_BATCH, ranges.get(size)))
        elif size in ranges and (largest := ranges[size].max) is not None:
            axes.append((ranges[size].min, ranges[size].example, largest))
        else:
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} is dynamic {_text(spec)}, "
                "and no profile says how large it gets",
                hint=f"pass a profile with min, opt and max shapes for {spec.name!r}",
            )
    low, mid, high = zip(*axes, strict=True) if axes else ((), (), ())
    return ShapeRange(min=low, opt=mid, max=high)


def _within(sizes: Sizes, allowed: AxisRange | None) -> Sizes:
    """Sizes within an axis's range. A bound of a thousand is no reason to build for a thousand."""
    if allowed is None:
        return sizes
    low, high = allowed.min, allowed.max or max(*sizes, allowed.min)
    low, mid, high = (min(max(size, low), high) for size in sizes)
    return low, mid, high


def _sizes(shapes: ShapeRange, axis: int) -> Sizes:
    return shapes.min[axis], shapes.opt[axis], shapes.max[axis]


def _given_axes(known: Mapping[str, TensorSpec], profile: Profile) -> dict[str, Sizes]:
    """The sizes that a profile gives to axes with a name."""
    return {
        size: _sizes(shapes, axis)
        for name, shapes in profile.items()
        for axis, size in enumerate(known[name].shape)
        if isinstance(size, str) and size != ANONYMOUS
    }


def _given_batch(known: Mapping[str, TensorSpec], profile: Profile) -> Sizes | None:
    for name, shapes in profile.items():
        shape = known[name].shape
        if shape and isinstance(shape[0], str):
            return _sizes(shapes, 0)
    return None


def _check_shared_axes(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    """Axes of one name have one size at run time, and so need one range."""
    seen: dict[str, tuple[str, int, Sizes]] = {}
    for spec in inputs:
        shapes = profile[spec.name]
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int) or size == ANONYMOUS:
                continue
            sizes = _sizes(shapes, axis)
            other = seen.setdefault(size, (spec.name, axis, sizes))
            if other[2] != sizes:
                raise ProfileMismatch(
                    f"axis {axis} of input {spec.name!r} and axis {other[1]} of input {other[0]!r} "
                    f"are the same axis {size!r}, and their ranges {sizes} and {other[2]} differ",
                    hint="give both the same min, opt and max",
                )


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
