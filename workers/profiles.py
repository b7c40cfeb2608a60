"""Optimization profiles against the inputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from farm.errors import ProfileMismatch
from farm.specs import Profile, ShapeRange, TensorSpec

#: Batch sizes (min, opt, max) of a model with a dynamic batch and no profile.
DEFAULT_BATCH = (1, 8, 64)

Shapes = dict[str, tuple[int, ...]]
Which = Literal["min", "opt", "max"]


def resolve_profiles(
    inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> tuple[Profile, ...]:
    """Give every profile a range for every input, in the order of the inputs.

    An input that a profile leaves out has its own shape if it is static, and the batch of the
    others, or 1, 8 and 64, if only its first axis is dynamic. Static models need no profile.

    Raises:
        ProfileMismatch: naming the input and the axis that doesn't fit.
    """
    if not inputs:
        raise ProfileMismatch("the model has no inputs", hint="hand in a model with inputs")
    return tuple(_resolve(inputs, profile) for profile in (profiles or ({},)))


def shapes_at(profile: Profile, which: Which) -> Shapes:
    """The shape of every input at the profile's smallest, optimal or largest size."""
    return {name: getattr(shapes, which) for name, shapes in profile.items()}


def has_dynamic_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Whether every input's first axis is dynamic, so that samples can be batched at will."""
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)


def batch_range(inputs: Sequence[TensorSpec], profile: Profile) -> tuple[int, int, int]:
    """The profile's smallest, optimal and largest batch; 1, 1, 1 for a model of scalars."""
    for spec in inputs:
        if spec.shape:
            shapes = profile[spec.name]
            return shapes.min[0], shapes.opt[0], shapes.max[0]
    return 1, 1, 1


def shapes_at_batch(inputs: Sequence[TensorSpec], profile: Profile, batch: int) -> Shapes:
    """The opt shapes, with the first axis of every dynamic input set to ``batch``."""
    shapes = shapes_at(profile, "opt")
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            shapes[spec.name] = (batch, *shapes[spec.name][1:])
    return shapes


def profiles_as_json(profiles: Sequence[Profile]) -> list[dict[str, object]]:
    return [
        {name: shapes.model_dump(mode="json") for name, shapes in profile.items()}
        for profile in profiles
    ]


def _resolve(inputs: Sequence[TensorSpec], profile: Profile) -> Profile:
    known = {spec.name: spec for spec in inputs}
    for name, shapes in profile.items():
        if name not in known:
            raise ProfileMismatch(
                f"the profile names the input {name!r}, which the model doesn't have",
                hint=f"the model's inputs are {', '.join(known)}",
            )
        _check(known[name], shapes)
    batch = _given_batch(known, profile)
    resolved = {
        spec.name: profile[spec.name] if spec.name in profile else _default(spec, batch)
        for spec in inputs
    }
    _check_shared_axes(inputs, resolved)
    return resolved


def _check(spec: TensorSpec, shapes: ShapeRange) -> None:
    if len(shapes.opt) != len(spec.shape):
        raise ProfileMismatch(
            f"input {spec.name!r} has {len(spec.shape)} axes {_text(spec)}, "
            f"and its profile has {len(shapes.opt)}",
            hint=f"give {len(spec.shape)} sizes each for min, opt and max",
        )
    for axis, size in enumerate(spec.shape):
        asked = {shapes.min[axis], shapes.opt[axis], shapes.max[axis]}
        if isinstance(size, int) and asked != {size}:
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} is always {size}, "
                f"and the profile asks for {', '.join(map(str, sorted(asked)))}",
                hint=f"set axis {axis} to {size}, or export the model with that axis dynamic",
            )


def _default(spec: TensorSpec, batch: tuple[int, int, int]) -> ShapeRange:
    for axis, size in enumerate(spec.shape[1:], start=1):
        if isinstance(size, str):
            raise ProfileMismatch(
                f"axis {axis} of input {spec.name!r} is dynamic {_text(spec)}, "
                "and no profile says how large it gets",
                hint=f"pass a profile with min, opt and max shapes for {spec.name!r}",
            )
    rest = tuple(size for size in spec.shape[1:] if isinstance(size, int))
    if not spec.shape:
        return ShapeRange(min=(), opt=(), max=())
    first = spec.shape[0]
    low, mid, high = (first, first, first) if isinstance(first, int) else batch
    return ShapeRange(min=(low, *rest), opt=(mid, *rest), max=(high, *rest))


def _given_batch(known: Mapping[str, TensorSpec], profile: Profile) -> tuple[int, int, int]:
    for name, shapes in profile.items():
        shape = known[name].shape
        if shape and isinstance(shape[0], str):
            return shapes.min[0], shapes.opt[0], shapes.max[0]
    return DEFAULT_BATCH


def _check_shared_axes(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    """Axes of one name have one size at run time, and so need one range."""
    seen: dict[str, tuple[str, int, tuple[int, int, int]]] = {}
    for spec in inputs:
        shapes = profile[spec.name]
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int) or size == "?":
                continue
            sizes = (shapes.min[axis], shapes.opt[axis], shapes.max[axis])
            other = seen.setdefault(size, (spec.name, axis, sizes))
            if other[2] != sizes:
                raise ProfileMismatch(
                    f"axis {axis} of input {spec.name!r} and axis {other[1]} of input {other[0]!r} "
                    f"are the same axis {size!r}, and their ranges {sizes} and {other[2]} differ",
                    hint="give both the same min, opt and max",
                )


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
