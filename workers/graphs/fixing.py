"""Folds inputs with one fixed value, and axes with only one possible size, into the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import optimizer

from farm.errors import FixedInputRefused, InvalidModel
from farm.specs.shapes import FixedInputs, FixedValue, TensorSpec
from workers.graphs import check, interface, walk
from workers.inputs.batch import Arrays
from workers.inputs.samples import Runnable

#: Folding an ``If`` reveals more constants; a graph nested deeper than this is only folded this far.
_ROUNDS = 8
_TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Fixed:
    """A model with some inputs fixed at one value.

    Parameters:
        values: of the fixed inputs, in the model's types.
    """

    def __init__(self, model: Runnable, values: Mapping[str, NDArray[np.generic]]) -> None:
        self._model = model
        self._values = values

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run one batch of the remaining inputs and return the outputs."""
        return self._model.run(dict(arrays) | dict(self._values))


def values(fixed: FixedInputs, inputs: Sequence[TensorSpec]) -> Arrays:
    """The values as arrays in the inputs' types and shapes.

    Raises:
        FixedInputRefused: names the input and why it can't have the value.
    """
    known = {spec.name: spec for spec in inputs}
    for name in fixed:
        if name not in known:
            raise FixedInputRefused(
                f"the model has no input {name!r} to fix",
                hint=f"its inputs are {', '.join(known)}",
            )
    if fixed and len(fixed) == len(known):
        raise FixedInputRefused(
            "all inputs of the model are fixed, so nothing is left to compute",
            hint="leave at least one input unfixed",
        )
    return {name: _array(given, known[name]) for name, given in fixed.items()}


def fixed_model(model: onnx.ModelProto, fixed: FixedInputs) -> onnx.ModelProto:
    """The graph with the values folded in: whatever depends on them alone is precomputed, and an
    ``If`` on them is replaced by the branch they select.

    Raises:
        FixedInputRefused
    """
    found = values(fixed, interface.every_input(model))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    walk.drop(graph.input, lambda value: value.name in found)
    walk.drop(graph.initializer, lambda tensor: tensor.name in found)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in found.items())
    return folded(copy)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with everything that follows from small constants precomputed, and dead branches removed.

    Raises:
        InvalidModel
    """
    before = sum(1 for _ in walk.all_nodes(model.graph))
    # Shapes inferred for arbitrary values would hide those that follow from these.
    del model.graph.value_info[:]
    try:
        result: onnx.ModelProto = optimizer.optimize(model, num_iterations=_ROUNDS)
    except Exception as err:  # onnxscript's passes raise their own kinds and bare Exceptions
        raise InvalidModel(
            f"the fixed inputs can't be folded into the graph: {check.brief(err)}",
            hint="fix it in the model itself, and export it again",
        ) from err
    after = sum(1 for _ in walk.all_nodes(result.graph))
    print(f"folded fixed inputs: {after} of {before} operators remain", flush=True)
    return result


def _array(given: FixedValue, spec: TensorSpec) -> NDArray[np.generic]:
    dtype = _TYPES.get(spec.dtype) or np.dtype(spec.dtype)
    array = np.asarray(given)
    if not _fits(array, dtype):
        raise FixedInputRefused(
            f"the input {spec.name!r} takes {spec.dtype}, but {given!r} isn't a value of that type",
            hint=f"pass {spec.dtype}: --fix {spec.name}=VALUE",
        )
    sizes = [size if isinstance(size, int) else None for size in spec.shape]
    known = [size for size in sizes if size is not None]
    if array.ndim == 0 and len(known) == len(sizes):
        return np.full(known, array, dtype)
    if array.ndim != len(sizes) or any(
        size not in (None, there) for size, there in zip(sizes, array.shape, strict=True)
    ):
        shape = f"[{', '.join(map(str, spec.shape))}]"
        raise FixedInputRefused(
            f"the input {spec.name!r} has the shape {shape}, but the value {list(array.shape)}",
            hint="pass a number for an input of known shape, else lists in the input's shape",
        )
    return array.astype(dtype)


def _fits(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return bool(array.dtype.kind == "b" or np.isin(array, (0, 1)).all())
    if array.dtype.kind == "b":
        return False
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return bool(
            (array == np.floor(array)).all()
            and (low <= array.min(initial=0))
            and (array.max(initial=0) <= high)
        )
    return True
