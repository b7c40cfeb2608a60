"""The batch among the axes of a model's inputs: by its name, or by where it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from farm.specs.shapes import ANONYMOUS, TensorSpec

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


def named_axis(shape: tuple[int | str, ...], symbol: str) -> int | None:
    """Where a named axis is; None if it is absent, or anonymous."""
    # Two anonymous axes are unrelated.
    return shape.index(symbol) if symbol in shape and symbol != ANONYMOUS else None
