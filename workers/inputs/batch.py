"""The batch: the axis of each input and output along which samples are stacked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from farm.specs.shapes import ANONYMOUS, Profile, ShapeRange, TensorSpec

Arrays = dict[str, NDArray[np.generic]]
Shapes = dict[str, tuple[int, ...]]
Sizes = tuple[int, int, int]  #: an axis's smallest, optimal and largest size

#: Names that people and exporters give the batch axis, including ambiguous ones.
_BATCH = re.compile(r"(\w*[_.])?batch(_?size)?", re.IGNORECASE)
_SHORT = re.compile(r"n|b|bs", re.IGNORECASE)
#: Names of an axis within one sample.
_SEQUENCE = re.compile(
    r"[tsl]|(\w*_)?(seq|sequence|time|length|len|frames?|steps?)(_?len(gth)?)?", re.IGNORECASE
)
#: torch.export's name for a size: archives keep no other names.
_SYMBOL = re.compile(r"s\d+")
_LENGTHS = re.compile(r"(.*_)?len(gth)?s?", re.IGNORECASE)


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
        axes = {spec.name: _axis(spec.shape, symbol) for spec in inputs}
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

    def repeated(self, arrays: Mapping[str, NDArray[np.generic]], size: int) -> Arrays:
        """A batch of this size: the samples in order, repeated as needed."""
        return self.take(arrays, np.arange(size) % self.count(arrays))

    def at(self, profile: Profile, size: int) -> Shapes:
        """The profile's opt shapes, with a dynamic batch set to ``size``."""
        shapes = {name: given.opt for name, given in profile.items()}
        for name, axis in self.axes.items():
            if self.is_dynamic and axis is not None:
                shape = shapes[name]
                shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])
        return shapes


def batch_symbol(inputs: Sequence[TensorSpec]) -> str | None:
    """The name of the batch axis, or None if no candidate is dynamic."""
    named = [(spec, axis, s) for spec in inputs for axis, s in enumerate(spec.shape) if _named(s)]
    for _, _, size in named:
        if _BATCH.fullmatch(str(size)):
            return str(size)
    firsts = [str(s.shape[0]) for s in inputs if s.shape and isinstance(s.shape[0], str)]
    short = [(spec, axis, str(size)) for spec, axis, size in named if _SHORT.fullmatch(str(size))]
    for _, axis, size in short:
        if axis == 0:
            return size
    if not firsts:
        return _second_axis(inputs, {size for _, axis, size in short if axis == 1})
    if _SEQUENCE.fullmatch(firsts[0]) and short:
        return short[0][2]
    return _sequence_first(inputs, firsts[0]) or firsts[0]


def _named(size: int | str) -> bool:
    return isinstance(size, str) and size != ANONYMOUS


def _second_axis(inputs: Sequence[TensorSpec], short: set[str]) -> str | None:
    """The batch axis of a sequence-first model whose sequences all have the same length."""
    for spec in inputs:
        if len(spec.shape) < 3 or not isinstance(spec.shape[1], str) or spec.shape[0] == 1:
            continue
        if spec.shape[1] in short or _SYMBOL.fullmatch(spec.shape[1]):
            return spec.shape[1]
    return None


def _sequence_first(inputs: Sequence[TensorSpec], first: str) -> str | None:
    """The second axis of the first input whose first is dynamic too, if another input shows that it is the
    batch: a recurrent state ``[layers, batch, …]``, or lengths ``[batch]``."""
    data = next(spec for spec in inputs if spec.shape and spec.shape[0] == first)
    if len(data.shape) < 3 or not _named(data.shape[1]) or data.shape[1] == first:
        return None
    second = str(data.shape[1])
    for spec in inputs:
        is_state = (
            len(spec.shape) == 3 and isinstance(spec.shape[0], int) and spec.shape[1] == second
        )
        is_lengths = spec.shape == (second,) and _LENGTHS.fullmatch(spec.name)
        if is_state or is_lengths:
            return second
    return None


def _axis(shape: tuple[int | str, ...], symbol: str) -> int | None:
    # Two anonymous axes are unrelated.
    return shape.index(symbol) if symbol in shape and symbol != ANONYMOUS else None


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
    axis = _axis(spec.shape, symbol)
    if axis is not None or not spec.shape:
        return axis
    first = spec.shape[0]
    return 0 if isinstance(first, str) and first not in beside else None


def sizes_of(shapes: ShapeRange, axis: int) -> Sizes:
    """An axis's smallest, optimal and largest size."""
    return shapes.min[axis], shapes.opt[axis], shapes.max[axis]
