"""Base classes of stored records, and their bounds: untrusted processes send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from farm.specs import faults
from farm.specs.shapes import ShapeRange, TensorSpec

MOST_NAMES = 20_000  #: of layers, inputs or outputs: more than any buildable model has


MOST_LISTED = 1000


Word = Annotated[str, Field(max_length=100)]


Text = Annotated[str, Field(max_length=4000)]


Name = Annotated[str, Field(max_length=4096)]


Count = Annotated[int, Field(ge=0, lt=2**63)]


Number = Annotated[float, Field(allow_inf_nan=False)]


Share = Annotated[float, Field(ge=0, le=1)]


Texts = Annotated[list[Text], Field(max_length=MOST_LISTED, fail_fast=True)]


Words = Annotated[list[Word], Field(max_length=MOST_LISTED, fail_fast=True)]


Counts = Annotated[list[Count], Field(max_length=MOST_LISTED, fail_fast=True)]


Interval = Annotated[list[Number | None], Field(max_length=2)]


Axis = Annotated[int, Field(ge=-1, lt=2**63)]


Profiles = Annotated[
    list[Annotated[dict[Name, ShapeRange], Field(max_length=MOST_NAMES)]],
    Field(max_length=8, fail_fast=True),
]


class _AsGiven(BaseModel):
    """Its JSON holds the fields that were given and no others: what was kept passes through unchanged."""

    # No return type: it would become the JSON schema.
    @model_serializer(mode="wrap")
    def _given(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if name in self.model_fields_set}


class Record(_AsGiven):
    """A record that refuses a field it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenRecord(_AsGiven):
    """A record that may have more fields than are read here: a newer or an older farm's."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Tensor(Record):
    name: Name
    dtype: Word
    shape: Annotated[list[Axis | Name], Field(max_length=64, fail_fast=True)]


def tensors(specs: Iterable[TensorSpec]) -> list[Tensor]:
    return [Tensor(name=one.name, dtype=one.dtype, shape=list(one.shape)) for one in specs]


Tensors = Annotated[list[Tensor], Field(max_length=MOST_NAMES, fail_fast=True)]


def first_of(err: ValidationError) -> str:
    """The first of the errors as a text of bounded length."""
    if err.error_count() > MOST_LISTED:
        return f"{err.error_count()} values in it are invalid"
    one = err.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, one['loc']))[:200]}: {faults.told(one)[:200]}"
