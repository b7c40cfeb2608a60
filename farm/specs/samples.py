"""Whether data fit a model's inputs, by names, types and shapes alone: the same words wherever it is checked.

The caller chooses the error: a job fails with ``InvalidData``, a request is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from farm.errors import FarmError
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.specs.tasks import OF_BOXES, OF_FLOATS, Metric

#: The name of the array of class indices, or of what else the outputs should be, in evaluation data.
LABEL = "label"
#: The name of the array of a detector's labelled boxes.
BOXES = "label_boxes"
#: The arrays that are no input.
LABELS = (LABEL, BOXES)
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
    others = [name for name in arrays if name not in LABELS]
    if others == [POSITIONAL] and len(inputs) == 1:
        return {inputs[0].name if name == POSITIONAL else name: arrays[name] for name in arrays}
    return dict(arrays)


def check_names(names: Collection[str], inputs: Sequence[TensorSpec], error: Refusal) -> None:
    """Refuse data that lack an input or have another.

    Parameters:
        names: without the labels.
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


def check_labels(
    heads: Mapping[str, Head], count: int, error: Refusal, metric: Metric | None = None
) -> None:
    """Refuse labels of another type or number than the samples and the metric take.

    Parameters:
        heads: of the data, which have ``label``.
    """
    head = heads[LABEL]
    kinds = ("float",) if metric in OF_FLOATS else ("int", "uint")
    if head.shape[:1] != (count,) or not head.dtype.startswith(kinds):
        what = "numbers like the output's" if metric in OF_FLOATS else "integers"
        raise error(
            f"{LABEL!r} is {head.dtype}{list(head.shape)}, but {what} for each of {count} samples "
            "are required",
            hint=f"save what the output should be as float32 of shape [{count}, …]"
            if metric in OF_FLOATS
            else f"save class indices as int64 of shape [{count}], or [{count}, height, width] where "
            "each pixel has a class",
        )
    if metric in OF_BOXES:
        _check_boxes(heads, error)


def _check_boxes(heads: Mapping[str, Head], error: Refusal) -> None:
    label, boxes = heads[LABEL], heads.get(BOXES)
    is_right = len(label.shape) == 2 and boxes is not None and boxes.shape == (*label.shape, 4)
    if not is_right or boxes is None or not boxes.dtype.startswith("float"):
        given = f"{boxes.dtype}{list(boxes.shape)}" if boxes else "missing"
        raise error(
            f"{LABEL!r} is {label.dtype}{list(label.shape)} and {BOXES!r} is {given}, but a detector's "
            "labels are a class and a box for each object",
            hint=f"save {LABEL} as int64 [samples, objects], padded with -1, and {BOXES} as float32 "
            "[samples, objects, 4]: x1, y1, x2, y2",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
