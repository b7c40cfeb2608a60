"""The batch: the axis of each input and output along which samples are stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from farm.specs.batch_axes import batch_symbol, named_axis
from farm.specs.shapes import ANONYMOUS, Profile, ShapeRange, TensorSpec
from workers.inputs.stored import Column

Arrays = dict[str, NDArray[np.generic]]
Shapes = dict[str, tuple[int, ...]]
Sizes = tuple[int, int, int]  #: an axis's smallest, optimal and largest size


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Where the samples are in the arrays of a model's inputs and outputs."""

    axes: Mapping[str, int | None]  #: input → axis; None if it is the same for every sample
    min: int
    opt: int
    max: int
    is_dynamic: bool  #: whether the batch size can be chosen
    output_axes: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, inputs: Sequence[TensorSpec], profile: Profile, outputs: Sequence[TensorSpec] = ()
    ) -> Batch:
        """Find a model's batch, at the sizes of a profile with a range for every input.

        The batch is the axis with that name; otherwise the first axis of the first input, wherever its
        name appears. Another input's first axis is the batch if it is dynamic with the same range, and so
        is a later axis if the first is static, as in an unnamed recurrent state. In a static model it is
        the first axis of the first input, and of every input with the same length.
        """
        symbol = batch_symbol(inputs)
        if symbol is None:
            return cls._static(inputs, profile, outputs)
        axes = {spec.name: named_axis(spec.shape, symbol) for spec in inputs}
        if symbol == ANONYMOUS:
            axes[next(s.name for s in inputs if s.shape and s.shape[0] == ANONYMOUS)] = 0
        anchor = next(name for name, axis in axes.items() if axis is not None)
        sizes = sizes_of(profile[anchor], axes[anchor] or 0)
        beside = {
            size
            for spec in inputs
            for axis, size in enumerate(spec.shape)
            if axes[spec.name] not in (None, axis) and size != ANONYMOUS
        }
        for spec in inputs:
            first = spec.shape[0] if spec.shape else 0
            if axes[spec.name] is None and isinstance(first, str) and first not in beside:
                axes[spec.name] = 0 if sizes_of(profile[spec.name], 0) == sizes else None
            elif axes[spec.name] is None:
                axes[spec.name] = _axis_of_range(spec, profile[spec.name], sizes, beside)
        low, mid, high = sizes
        made = {spec.name: _output_axis(spec, symbol, beside) for spec in outputs}
        return cls(axes=axes, min=low, opt=mid, max=high, is_dynamic=True, output_axes=made)

    @classmethod
    def _static(
        cls, inputs: Sequence[TensorSpec], profile: Profile, outputs: Sequence[TensorSpec]
    ) -> Batch:
        firsts = {s.name: sizes_of(profile[s.name], 0) for s in inputs if s.shape}
        low, mid, high = next(iter(firsts.values()), (1, 1, 1))
        axes = {s.name: 0 if firsts.get(s.name) == (low, mid, high) else None for s in inputs}
        made = {s.name: 0 if s.shape and s.shape[0] in (mid, ANONYMOUS) else None for s in outputs}
        return cls(axes=axes, min=low, opt=mid, max=high, is_dynamic=False, output_axes=made)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that have a batch."""
        return tuple(name for name, axis in self.axes.items() if axis is not None)

    def axis_of(self, name: str) -> int | None:
        """An input's batch axis, or None if it is the same for every sample."""
        return self.axes[name]

    def axis_of_output(self, name: str) -> int | None:
        """An output's batch axis, or None if it has none; 0 if unknown."""
        return self.output_axes.get(name, 0)

    def count(self, arrays: Mapping[str, NDArray[np.generic]]) -> int:
        """The number of samples in arrays of the inputs; 1 without a batch."""
        counts = [
            arrays[name].shape[axis]
            for name, axis in self.axes.items()
            if axis is not None and name in arrays
        ]
        return min(counts, default=1)

    def split(
        self, arrays: Mapping[str, NDArray[np.generic]], size: int, *, smallest: int = 1
    ) -> Iterator[Arrays]:
        """Consecutive batches, in order; a remainder smaller than ``smallest`` is dropped."""
        for start in range(0, self.count(arrays), size):
            batch = self.take(arrays, slice(start, start + size))
            if self.count(batch) >= smallest:
                yield batch

    def take(
        self,
        arrays: Mapping[str, NDArray[np.generic]],
        which: slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.intp],
    ) -> Arrays:
        """Select samples by a slice, a mask, or indices in the given order."""
        taken: Arrays = {}
        for name, array in arrays.items():
            axis = self.axes.get(name)
            taken[name] = array if axis is None else array[(slice(None),) * axis + (which,)]
        return taken

    def select(self, arrays: Mapping[str, NDArray[np.generic]], which: NDArray[np.bool_]) -> Arrays:
        """The samples that a mask marks; those on disk stay there."""
        every = cast(Mapping[str, NDArray[np.generic] | Column], arrays)
        chosen = {
            name: one.selected(which)
            if isinstance(one, Column)
            else self.take({name: one}, which)[name]
            for name, one in every.items()
        }
        return cast(Arrays, chosen)

    def repeated(self, arrays: Mapping[str, NDArray[np.generic]], size: int) -> Arrays:
        """A batch of this size: the samples in order, repeated as needed."""
        return self.take(arrays, np.arange(size) % self.count(arrays))

    def at(self, profile: Profile, size: int) -> Shapes:
        """The profile's opt shapes, with a dynamic batch set to ``size``."""
        return self.resized({name: given.opt for name, given in profile.items()}, size)

    def resized(self, shapes: Shapes, size: int) -> Shapes:
        """The same shapes of inputs with a dynamic batch set to ``size``."""
        made = dict(shapes)
        for name, axis in self.axes.items():
            if self.is_dynamic and axis is not None:
                shape = made[name]
                made[name] = (*shape[:axis], size, *shape[axis + 1 :])
        return made


def _axis_of_range(
    spec: TensorSpec, shapes: ShapeRange, sizes: Sizes, beside: set[int | str]
) -> int | None:
    """The dynamic axis with this range that doesn't appear next to the batch in another input."""
    return next(
        (
            axis
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str) and size not in beside and sizes_of(shapes, axis) == sizes
        ),
        None,
    )


def _output_axis(spec: TensorSpec, symbol: str, beside: set[int | str]) -> int | None:
    """By the batch's name; otherwise the first axis, if it is dynamic and its meaning unknown."""
    axis = named_axis(spec.shape, symbol)
    if axis is not None or not spec.shape:
        return axis
    first = spec.shape[0]
    return 0 if isinstance(first, str) and first not in beside else None


def sizes_of(shapes: ShapeRange, axis: int) -> Sizes:
    """An axis's smallest, optimal and largest size."""
    return shapes.min[axis], shapes.opt[axis], shapes.max[axis]
