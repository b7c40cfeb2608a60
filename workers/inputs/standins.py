"""Seeded stand-ins for missing data, within what a model accepts as far as that is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from farm.errors import InvalidModel
from farm.specs.batch_axes import batch_symbol
from farm.specs.samples import given_as
from farm.specs.shapes import Profile, TensorSpec
from workers.inputs.batch import Arrays, Shapes

#: Inputs that give the length of each sample.
_LENGTHS = re.compile(r"(?P<of>.*?)_?(len|lens|length|lengths)", re.IGNORECASE)


class Runnable(Protocol):
    """A model or an engine that runs one batch here: what stages need from every backend."""

    def run(self, arrays: Arrays) -> Arrays:
        """The outputs for one batch, by name, at any batch size of the profile it was built with."""
        ...


class Kind(NamedTuple):
    """The distribution of random values."""

    floats: tuple[float, float]
    integers: tuple[int, int]

    def __str__(self) -> str:
        low, high = self.integers
        integers = str(low) if low == high else f"{low} or {high}"
        return f"floats in {self.floats[0]:g}…{self.floats[1]:g}, integers {integers}"


#: In the order tried. Positive values are for powers, distances and depths.
KINDS = tuple(
    Kind(floats, integers) for integers in ((0, 1), (1, 1)) for floats in ((-1.0, 1.0), (0.0, 1.0))
)


def random_arrays(
    inputs: Sequence[TensorSpec],
    shapes: Shapes,
    *,
    seed: int,
    profile: Profile | None = None,
    kind: Kind = KINDS[0],
) -> Arrays:
    """Seeded stand-in inputs: by default floats in −1…1, booleans, and integers 0 or 1.

    As token or class indices, 0 and 1 are valid whatever the table's size. A mask is all ones: a fully
    masked result is undefined. Lengths stay within the axis they count, and an input whose values the
    profile gives gets the optimal ones.
    """
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for spec in inputs:
        dtype, shape = np.dtype(given_as(spec)), shapes[spec.name]
        given = profile[spec.name].values if profile and spec.name in profile else None
        if given is not None:
            arrays[spec.name] = np.array(given.opt).reshape(shape).astype(dtype)
        elif spec.name.lower().endswith("mask"):
            arrays[spec.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu" and (longest := _counted(spec, inputs, shapes)):
            arrays[spec.name] = rng.integers((longest + 1) // 2, longest + 1, shape).astype(dtype)
        elif dtype.kind == "b":
            arrays[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "iu":
            low, high = kind.integers
            arrays[spec.name] = rng.integers(low, high + 1, shape).astype(dtype)
        else:
            arrays[spec.name] = rng.uniform(*kind.floats, shape).astype(dtype)
    return arrays


def tried(
    model: Runnable,
    inputs: Sequence[TensorSpec],
    shapes: Shapes,
    *,
    seed: int,
    profile: Profile | None = None,
) -> tuple[Arrays, Kind]:
    """Stand-ins of the first kind for which a model's outputs are finite; else on which it runs at all.

    Raises:
        InvalidModel: the model runs on none. Names the integer inputs, which may accept few values.
    """
    runs: list[tuple[Arrays, Kind]] = []
    failures: list[InvalidModel] = []
    for kind in KINDS:
        arrays = random_arrays(inputs, shapes, seed=seed, profile=profile, kind=kind)
        try:
            made = model.run(arrays)
        except InvalidModel as err:
            failures.append(err)
            continue
        if _is_finite(made):
            return arrays, kind
        runs.append((arrays, kind))
    if runs:
        return runs[0]
    raise _refused(failures[0], inputs)


def _is_finite(arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    floats = (a for a in arrays.values() if a.dtype.kind in "fV")
    return all(np.isfinite(array.astype(np.float64)).all() for array in floats)


def _refused(failure: InvalidModel, inputs: Sequence[TensorSpec]) -> InvalidModel:
    integers = [spec.name for spec in inputs if np.dtype(given_as(spec)).kind in "iu"]
    if not integers:
        return failure
    return InvalidModel(
        f"{failure.detail}; there was no data, so random values were used, 0 and 1 for "
        f"{', '.join(map(repr, integers))}",
        hint=f"fix an input that has one value: --fix {integers[-1]}=VALUE; for others provide samples: "
        "--calibration, --evaluation",
    )


def _counted(spec: TensorSpec, inputs: Sequence[TensorSpec], shapes: Shapes) -> int | None:
    """The size of the axis that a lengths input counts; None if it isn't one."""
    found = _LENGTHS.fullmatch(spec.name)
    if not found or len(spec.shape) > 2:
        return None
    batch = batch_symbol(inputs)
    others = [one for one in inputs if len(one.shape) > 1 and not _LENGTHS.fullmatch(one.name)]
    named = [one for one in others if one.name.lower().startswith(found["of"].lower())]
    for one in named or others:
        batch_axis = one.shape.index(batch) if batch in one.shape else 0
        return next(n for axis, n in enumerate(shapes[one.name]) if axis != batch_axis)
    return None
