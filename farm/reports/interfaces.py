"""A model's inputs and outputs, and how those of one version differ from another's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from farm.reports.records import Axis, Name, Record, Word
from farm.specs.shapes import ANONYMOUS

#: Models with more are rare; they aren't compared.
MOST_PORTS = 512
_LONGEST_NAME = 200
_MOST_TOLD = 20
#: What nobody knows about a type, and what a dynamic axis is: it is called otherwise in each export.
_UNKNOWN = "?"

PortName = Annotated[str, Field(max_length=_LONGEST_NAME)]


class Port(Record):
    """An input or an output. A dynamic axis is a name, ``?`` or -1."""

    name: PortName
    dtype: Word = Field(description="numpy's name; `?` if unknown")
    shape: Annotated[list[Axis | Name], Field(max_length=64)] | None = Field(
        None, description="null if its rank is unknown"
    )

    def __str__(self) -> str:
        """``float32[?,3,224,224]``"""
        if self.shape is None:
            return f"{self.dtype}[…]"
        return f"{self.dtype}[{','.join(map(str, map(_axis, self.shape)))}]"


Ports = Annotated[list[Port], Field(max_length=MOST_PORTS, fail_fast=True)]


class Interface(Record):
    """What a model takes and gives."""

    inputs: Ports
    outputs: Ports

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self | None:
        """The interface that a job's facts hold; None if they don't, or it is too large to compare."""
        given = {way: facts.get(way) for way in ("inputs", "outputs")}
        try:
            return cls.model_validate(given)
        except ValidationError:
            return None

    def without(self, fixed: Collection[str]) -> Interface:
        """What is left once these inputs are fixed."""
        return Interface(
            inputs=[one for one in self.inputs if one.name not in fixed], outputs=self.outputs
        )

    def changes(self, before: Interface) -> list[str]:
        """How this differs from what came before, in words.

        Names, types, ranks and fixed axes count. The order doesn't, nor what dynamic axes are called, nor an
        output's axis that only one of the two fixes: exporters differ in what they find out.
        """
        told = [
            *_changes("input", before.inputs, self.inputs),
            *_changes("output", before.outputs, self.outputs),
        ]
        more = len(told) - _MOST_TOLD
        return told if more <= 0 else [*told[:_MOST_TOLD], f"{more} more"]


def _changes(way: str, before: Sequence[Port], after: Sequence[Port]) -> list[str]:
    old, new = ({one.name: one for one in ports} for ports in (before, after))
    told = [f"{way} `{name}` is missing: {old[name]}" for name in old if name not in new]
    told += [f"{way} `{name}` is new: {new[name]}" for name in new if name not in old]
    told += [
        f"{way} `{name}`: {old[name]} → {new[name]}"
        for name in old
        if name in new and not _alike(old[name], new[name], lenient=way == "output")
    ]
    return told


def _alike(one: Port, other: Port, *, lenient: bool) -> bool:
    if one.dtype != other.dtype and _UNKNOWN not in (one.dtype, other.dtype):
        return False
    if one.shape is None or other.shape is None:
        return True
    if len(one.shape) != len(other.shape):
        return False
    axes = zip(map(_axis, one.shape), map(_axis, other.shape), strict=True)
    return all(a == b or (lenient and ANONYMOUS in (a, b)) for a, b in axes)


def _axis(axis: int | str) -> int | str:
    return axis if isinstance(axis, int) and axis >= 0 else ANONYMOUS
