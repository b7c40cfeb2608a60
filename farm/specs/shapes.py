"""Shapes and sizes of inputs and profiles, and the values of fixed inputs."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from farm.specs.values import Value

#: An axis may have length 0: the cache of a decoder's first call has.
Axis = Annotated[int, Field(ge=0, le=2**31 - 1)]


#: More axes than any runtime accepts. Only the first fault is reported: thousands of shapes may be wrong.
Shape = Annotated[tuple[Axis, ...], Field(max_length=16, fail_fast=True)]


Size = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


#: More than TensorRT accepts.
SizeValues = Annotated[tuple[Size, ...], Field(max_length=64, fail_fast=True)]


class ValueRange(Value):
    """The values that an input which says a size may have, in a row: smallest, likely, largest."""

    min: SizeValues
    opt: SizeValues
    max: SizeValues

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max must have the same number of values")
        for low, mid, high in zip(self.min, self.opt, self.max, strict=True):
            if not low <= mid <= high:
                raise ValueError(f"values: min {low} ≤ opt {mid} ≤ max {high} doesn't hold")
        return self


class ShapeRange(Value):
    """The shapes that one input may have: smallest, the one to optimise for, largest."""

    min: Shape
    opt: Shape
    max: Shape
    values: ValueRange | None = (
        None  #: of an input whose values are sizes, which TensorRT must know
    )

    @model_serializer(mode="wrap")
    def _without_values(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "values" or value}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max must have the same number of axes")
        for axis, (low, mid, high) in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not low <= mid <= high:
                raise ValueError(f"axis {axis}: min {low} ≤ opt {mid} ≤ max {high} doesn't hold")
        return self


#: An optimization profile: input name → the shapes that it may have.
Profile = dict[str, ShapeRange]


#: The most values of a fixed input. Anything larger is a weight.
MAX_FIXED_VALUES = 4096


_MAX_FIXED_AXES = 8


def _checked_value(value: Any) -> Any:
    _count(value, 0)
    return value


def _count(value: Any, depth: int) -> int:
    """Count the numbers in rectangular nested lists."""
    if not isinstance(value, list):
        if not isinstance(value, bool | int | float):
            raise ValueError(f"{value!r} is neither a number, true or false, nor a list of these")
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value!r} isn't finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{value!r} fits no tensor type")
        return 1
    if len(value) > MAX_FIXED_VALUES:
        raise ValueError(f"more than {MAX_FIXED_VALUES} values: keep them in the model")
    if depth == _MAX_FIXED_AXES:
        raise ValueError(f"the lists are nested more than {_MAX_FIXED_AXES} deep")
    shapes = {_shape(one) for one in value}
    if len(shapes) > 1:
        raise ValueError("its lists have different lengths")
    total = sum(_count(one, depth + 1) for one in value)
    if total > MAX_FIXED_VALUES:
        raise ValueError(f"more than {MAX_FIXED_VALUES} values: keep them in the model")
    return total


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    return (len(value), *(_shape(value[0]) if value else ()))


#: A number, a boolean, or nested lists of them in the input's shape.
FixedValue = Annotated[Any, AfterValidator(_checked_value)]


#: Inputs with a constant value, which is folded into the graph: name → value.
FixedInputs = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], FixedValue],
    Field(max_length=64),
]


#: The name of an anonymous dynamic axis. Two such axes are unrelated.
ANONYMOUS = "?"


class TensorSpec(Value):
    """A graph input or output. A dynamic axis is its dimension's name, or ``?`` when anonymous."""

    name: str
    dtype: str  #: numpy's name: ``float32``, ``int64``
    shape: tuple[int | str, ...]
