"""What a submission may ask of a build."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from farm.errors import InvalidRequest
from farm.specs import digests
from farm.specs.values import Value
from farm.specs.words import AnyCase

LibraryDigest = Annotated[
    str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"), BeforeValidator(digests.checked)
]


_MAX_PLUGINS = 16


class BuilderOptions(Value):
    """Of TensorRT's builder, by its names. The defaults are the builder's own.

    ``tf32`` is for every runtime on a GPU; the others are TensorRT's.
    """

    tf32: bool = Field(True, description="allow TF32 for fp32 products, in every runtime on a GPU")
    sparse_weights: bool = Field(
        False, description="allow sparse kernels for weights with 2:4 sparsity"
    )
    builder_optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    max_aux_streams: Annotated[int, Field(ge=0, le=64)] | None = None
    workspace_mib: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="memory limit per layer, in MiB; by default unlimited"
    )
    hardware_compatibility_level: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"], AnyCase
    ] = "none"
    version_compatible: bool = Field(
        False, description="also run with later TensorRT releases of the same major version"
    )
    weight_streaming: bool = Field(
        False, description="allow streaming weights from host memory at run time"
    )
    timing_cache: bool = Field(
        True, description="use and extend the fleet's timing cache for this GPU"
    )
    plugins: Annotated[tuple[LibraryDigest, ...], Field(max_length=_MAX_PLUGINS)] = Field(
        (), description="digests of allow-listed plugin libraries to load, in this order"
    )

    @field_validator("plugins", mode="before")
    @classmethod
    def _by_commas(cls, given: object) -> object:
        # Only as many as it takes to see that there are too many.
        if isinstance(given, str):
            return tuple(filter(None, given.split(",", _MAX_PLUGINS)))
        # JSON has no tuples.
        return tuple(given[: _MAX_PLUGINS + 1]) if isinstance(given, list) else given

    def changed(self) -> dict[str, object]:
        """The options that differ from the builder's defaults, by name."""
        return self.model_dump(exclude_defaults=True)


class Prune(Value):
    """Which weights of convolutions and matrix products become zero, layer by layer."""

    method: Annotated[Literal["l1-unstructured", "2:4"], AnyCase] = Field(
        description="weights of smallest magnitude, anywhere; or 2 in every 4 along the input channels"
    )
    amount: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="fraction of each layer's weights, for l1-unstructured"
    )

    @model_validator(mode="after")
    def _amount_where_it_means_something(self) -> Self:
        if (self.amount is None) == (self.method == "l1-unstructured"):
            raise ValueError(
                "l1-unstructured needs an amount; 2:4 takes none, since it always prunes half"
            )
        return self

    def __str__(self) -> str:
        return "2:4" if self.amount is None else f"l1:{self.amount}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """``2:4`` or ``l1:0.5``, as ``str`` gives it.

        Raises:
            InvalidRequest
        """
        if text == "2:4":
            return cls(method="2:4")
        method, _, amount = text.strip().lower().partition(":")
        try:
            if method == "l1":
                return cls(method="l1-unstructured", amount=float(amount))
        except ValueError:
            pass
        raise InvalidRequest(
            f"{text!r} isn't a pruning method",
            hint="use 2:4, or l1 with the fraction of weights to zero, between 0 and 1: l1:0.5",
        )
