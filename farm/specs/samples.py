"""Whether data fit a model's inputs, by names, types and shapes alone: the same words wherever it is checked.

The caller chooses the error: a job fails with ``InvalidData``, a request is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from farm.errors import FarmError
from farm.specs.shapes import ShapeRange, TensorSpec

#: The name of the array of class indices in evaluation data.
LABEL = "label"
#: What ``numpy.savez(path, array)`` calls an array that it is given without a name.
POSITIONAL = "arr_0"
#: NumPy lacks this type: a bf16 input is passed as float32 and rounded when the model runs.
BF16 = "bfloat16"

Refusal = type[FarmError]
T = TypeVar("T")


class Head(NamedTuple):
    """What an array's file says about it."""

    dtype: str  #: numpy's name
    shape: tuple[int, ...]


def given_as(spec: TensorSpec) -> str:
    """The NumPy dtype of an input's arrays."""
    return "float32" if spec.dtype == BF16 else spec.dtype


def named(arrays: Mapping[str, T], inputs: Sequence[TensorSpec]) -> dict[str, T]:
    """The arrays by input; one saved without a name is the only input's."""
    others = [name for name in arrays if name != LABEL]
    if others == [POSITIONAL] and len(inputs) == 1:
        return {inputs[0].name if name == POSITIONAL else name: arrays[name] for name in arrays}
    return dict(arrays)


def check_names(names: Collection[str], inputs: Sequence[TensorSpec], error: Refusal) -> None:
    """Refuse data that lack an input or have another.

    Parameters:
        names: without ``label``.
    """
    wanted = [spec.name for spec in inputs]
    if set(names) != set(wanted):
        raise error(
            f"the data has {_listed(names)}, but the model's inputs are {_listed(wanted)}",
            hint="save one array per input, under the input's exact name: "
            f"numpy.savez(path, {', '.join(f'{name}=…' for name in wanted)})",
        )


def check_type(head: Head, spec: TensorSpec, batch_axis: int | None, error: Refusal) -> None:
    """Refuse an array of another rank or type than its input's.

    Never converts a type: silent casts are how uint8 images reach a model trained on floats in 0…1.
    """
    if len(head.shape) != len(spec.shape):
        raise error(
            f"the data for input {spec.name!r} has shape {list(head.shape)}, "
            f"but the model takes {list(spec.shape)}",
            hint="this input has no batch axis: pass one array, shared by all samples"
            if batch_axis is None
            else f"put the samples on axis {batch_axis} and keep the model's other axes",
        )
    if head.dtype != given_as(spec):
        raise error(
            f"the data for input {spec.name!r} is {head.dtype}, but the model takes {spec.dtype}",
            hint=f"preprocess it as for the model and save it with .astype(numpy.{given_as(spec)})",
        )


def check_sizes(
    head: Head, name: str, shapes: ShapeRange, axes: Iterable[int], error: Refusal
) -> None:
    """Refuse an array whose axes, those in ``axes``, are outside an input's range."""
    for axis in axes:
        low, high, size = shapes.min[axis], shapes.max[axis], head.shape[axis]
        if not low <= size <= high:
            allowed = str(low) if low == high else f"{low} to {high}"
            raise error(
                f"axis {axis} of the data for input {name!r} is {size}, "
                f"but the model takes {allowed}",
                hint="resize or pad the samples as for the model",
            )


def check_counts(
    heads: Mapping[str, Head], axes: Mapping[str, int | None], error: Refusal
) -> int | None:
    """The number of samples, which all inputs with a batch must have; None without a batch.

    Parameters:
        axes: input → its batch axis.
    """
    counts = {name: heads[name].shape[axis] for name, axis in axes.items() if axis is not None}
    for name, count in counts.items():
        if count == 0:
            raise error(f"input {name!r} has no samples", hint="save at least two batches")
    if len(set(counts.values())) > 1:
        along = ", ".join(f"axis {axes[name]} of {name!r}" for name in counts)
        raise error(
            f"the inputs have different numbers of samples: {counts}",
            hint=f"every array needs the same number of samples along the batch axis: {along}",
        )
    return next(iter(counts.values()), None)


def check_label(head: Head, count: int, error: Refusal) -> None:
    """Refuse labels that aren't integers, or not one for each sample or each of its positions."""
    if head.shape[:1] != (count,) or not head.dtype.startswith(("int", "uint")):
        raise error(
            f"{LABEL!r} is {head.dtype}{list(head.shape)}, but integers for each of {count} samples "
            "are required",
            hint=f"save class indices as int64 of shape [{count}], or [{count}, height, width] where "
            "each pixel has a class",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
