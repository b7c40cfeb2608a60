"""The sizes of a graph's values as far as they can be proven, in numbers and in names of dynamic axes.

ONNX's own inference leaves a Reshape's -1 unknown beside dynamic axes, though the names often cancel:
``[batch, sequence, 32]`` as ``[batch, sequence, -1, 8]`` leaves 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import onnx

from workers.graphs.shapes import inferred_of

#: A number, an axis' name, or None if unknown.
Size = int | str | None
Sizes = Mapping[str, Sequence[Size]]

_MOST_PASSES = 200  #: more than one per layer of any network


def sizes_of(model: onnx.ModelProto) -> Sizes:
    """The known sizes of the values of the main graph. Equal names mean equal sizes."""
    for _ in range(_MOST_PASSES):
        inferred = inferred_of(model, data_prop=True)
        sizes = {value.name: _sizes(value) for value in _values(inferred.graph)}
        sizes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        found = dict(_solved(inferred.graph, sizes))
        if not found:
            break
        for value in _values(inferred.graph):
            _name(value, found.get(value.name))
        model = inferred
    return sizes


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return [*graph.value_info, *graph.input, *graph.output]


def _sizes(value: onnx.ValueInfoProto) -> list[Size]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    ]


def _name(value: onnx.ValueInfoProto, found: tuple[int, Size] | None) -> None:
    """Put in the size that was found, and take out the names that inference made up for others.

    Inference keeps these, and so wouldn't carry on what is found.
    """
    for at, dim in enumerate(value.type.tensor_type.shape.dim):
        if found is not None and found[0] == at:
            dim.Clear()
            if isinstance(found[1], int):
                dim.dim_value = found[1]
            else:
                dim.dim_param = str(found[1])
        elif _is_unknown(dim.dim_param or None) and not dim.HasField("dim_value"):
            dim.Clear()


def _is_unknown(size: Size) -> bool:
    return size is None or (isinstance(size, str) and size.startswith("unk__"))


def _solved(graph: onnx.GraphProto, sizes: Sizes) -> Iterable[tuple[str, tuple[int, Size]]]:
    """The one unknown size of each Reshape's result, if the others leave no doubt."""
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        given, made = sizes.get(node.input[0], ()), sizes.get(node.output[0], ())
        unknown = [at for at, size in enumerate(made) if _is_unknown(size)]
        if len(unknown) != 1 or not given or any(size is None for size in given):
            continue
        size = _quotient(given, [size for at, size in enumerate(made) if at != unknown[0]])
        if size is not None and size != made[unknown[0]]:
            yield node.output[0], (unknown[0], size)


def _quotient(given: Sequence[Size], others: Sequence[Size]) -> Size:
    """The product of some sizes over that of others, if it is one number or one name."""
    above, below = 1, 1
    names: Counter[str] = Counter()
    for size in given:
        if isinstance(size, int):
            above *= size
        else:
            names[str(size)] += 1
    for size in others:
        if isinstance(size, int):
            below *= size
        else:
            names[str(size)] -= 1
    left = {name: power for name, power in names.items() if power}
    if below == 0 or above % below:
        return None
    if not left:
        return above // below
    if above == below and list(left.values()) == [1]:
        return next(iter(left))
    return None
