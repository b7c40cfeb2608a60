"""The same function with channels of equal magnitudes, so that one scale for all of them loses less.

An activation's channels are divided by factors, and the weights of the products that read it multiplied by
them. What makes the activation takes the division into its own weights, through operators for which a
positive factor is the same before as behind. Where nothing can take it, an operator divides, if the gain may
be worth one. A factor is the square root of the channel's magnitude over that of the weights that read it.

Sources: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019; Xiao
et al., SmoothQuant, ICML 2023.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.graphs import files, shapes, walk
from workers.inputs.samples import Arrays

Floats = NDArray[np.float64]

#: For which f(a × x) is a × f(x), channel by channel, for every a above 0.
_HOMOGENEOUS = (
    "AveragePool",
    "Dropout",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "PRelu",
    "Relu",
)
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_STRENGTH = 0.5
#: No factor is further from the others' mean than this.
_MOST = 1e4
#: How much larger than the median channel the largest one is where it is worth an operator.
_OUTLIER = 8.0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """An activation whose channels may be divided."""

    tensor: str
    axis: int
    rank: int
    readers: tuple[onnx.NodeProto, ...]
    takes: tuple[str, int] | None  #: the constant that takes the division, or None: an operator


def equalised(
    model: onnx.ModelProto, batches: Iterable[Arrays], folder: Path
) -> tuple[onnx.ModelProto, int] | None:
    """A copy of an unquantised graph with equal channels, and how many activations that concerns.

    None if there are none, or they are equal already.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = _Graph(made)
    places = graph.places()
    if not places:
        return None
    most = _magnitudes(model, places, batches, folder)
    changed = sum(graph.divide(place, most[place.tensor]) for place in places)
    graph.rename_divided()
    walk.drop_unused(made.graph)
    return (made, changed) if changed else None


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in walk.all_nodes(self._graph):
            for name in node.input:
                self._readers[name].append(node)
        self._divided: set[str] = set()
        self._outputs = {value.name for value in self._graph.output}
        self._top = {node.output[0] for node in self._graph.node if node.output}
        inferred = shapes.inferred_of(model).graph
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in [*inferred.value_info, *inferred.input]
            if value.type.tensor_type.HasField("shape")
        }

    def places(self) -> list[_Place]:
        found = []
        for name in dict.fromkeys(n.input[0] for n in self._graph.node if self._multiplies(n)):
            rank = self._ranks.get(name, 0)
            products = tuple(n for n in self._readers[name] if self._multiplies(n))
            if rank < 2 or not products or name in self._tensors:
                continue
            axes = {1 if node.op_type == "Conv" else rank - 1 for node in products}
            counts = {self._channels(node) for node in products}
            if len(axes) != 1 or len(counts) != 1 or any(n.input[0] != name for n in products):
                continue
            is_alone = len(products) == len(self._readers[name]) and name not in self._outputs
            [axis], [count] = axes, counts
            takes = self._takes(name, axis, rank, count) if is_alone else None
            if takes is None and any(node.op_type == "Conv" for node in products):
                continue
            found.append(_Place(tensor=name, axis=axis, rank=rank, readers=products, takes=takes))
        return found

    def _multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether it is a product of an activation with constant weights."""
        if node.op_type not in _PRODUCTS or node.output[0] not in self._top:
            return False
        if any(a.name == "transA" and a.i for a in node.attribute):
            return False
        weights = self._tensors.get(node.input[1])
        if weights is None or weights.data_type != TensorProto.FLOAT:
            return False
        return node.op_type == "Conv" or len(weights.dims) == 2

    def _channels(self, node: onnx.NodeProto) -> int:
        dims = self._tensors[node.input[1]].dims
        if node.op_type == "Conv":
            return int(dims[1]) * _groups(node)
        return int(dims[1] if _is_transposed(node) else dims[0])

    def _takes(self, name: str, axis: int, rank: int, count: int) -> tuple[str, int] | None:
        """The node that takes a division of the tensor's channels, by its output, and the axis."""
        maker = self._makers.get(name)
        while maker is not None and (
            maker.op_type in _HOMOGENEOUS
            or (maker.op_type == "Flatten" and axis == 1 and self._is_pooled(maker.input[0]))
        ):
            name = maker.input[0]
            if len(self._readers[name]) != 1 or name in self._outputs:
                return None
            maker = self._makers.get(name)
        if maker is None or maker.output[0] not in self._top:
            return None
        if maker.op_type == "Conv":
            weights = self._tensors.get(maker.input[1])
            fits = weights is not None and weights.dims[0] == count and self._has_constants(maker)
            return (maker.output[0], 0) if fits and axis == 1 else None
        if maker.op_type in ("Gemm", "MatMul") and self._multiplies(maker):
            dims = self._tensors[maker.input[1]].dims
            at = 0 if _is_transposed(maker) else 1
            return (
                (maker.output[0], at) if dims[at] == count and self._has_constants(maker) else None
            )
        if maker.op_type == "LayerNormalization" and axis == rank - 1:
            given = [self._tensors.get(one) for one in maker.input[1:]]
            fits = all(one is not None and list(one.dims) == [count] for one in given)
            return (maker.output[0], 0) if fits else None
        if maker.op_type in ("Add", "Mul") and axis == rank - 1:
            constant = next((n for n in maker.input if n in self._tensors), None)
            if constant is None or list(self._tensors[constant].dims) != [count]:
                return None
            if maker.op_type == "Mul":
                return maker.output[0], 0
            other = maker.input[1 - list(maker.input).index(constant)]
            is_alone = len(self._readers[other]) == 1 and other not in self._outputs
            behind = self._takes(other, axis, rank, count) if is_alone else None
            return (maker.output[0], 0) if behind is not None else None
        return None

    def _is_pooled(self, name: str) -> bool:
        maker = self._makers.get(name)
        return maker is not None and maker.op_type in ("GlobalAveragePool", "GlobalMaxPool")

    def _has_constants(self, node: onnx.NodeProto) -> bool:
        return all(name in self._tensors for name in node.input[1:] if name)

    def divide(self, place: _Place, most: Floats) -> bool:
        """Divide a tensor's channels, if that makes them more equal."""
        weights = np.max([self._largest(node) for node in place.readers], axis=0)
        live = (most > 0) & (weights > 0) & np.isfinite(most)
        if len(most) != len(weights) or live.sum() < 2:
            return False
        if place.takes is None and most[live].max() < _OUTLIER * np.median(most[live]):
            return False
        factors = np.ones(len(most))
        ratio = most[live] ** _STRENGTH / weights[live] ** (1 - _STRENGTH)
        ratio /= np.exp(np.log(ratio).mean())
        factors[live] = np.clip(ratio, 1 / _MOST, _MOST)
        if np.ptp(np.log(factors)) < np.log(2):
            return False
        for node in place.readers:
            self._scale(node, 1, self._input_axis(node), factors, _groups(node))
        if place.takes is None:
            self._insert(place, 1 / factors)
        else:
            self._divided |= set(self._between(place.tensor, place.takes[0]))
            self._take(self._makers[place.takes[0]], 1 / factors)
        return True

    def rename_divided(self) -> None:
        """Give what has other values another name: they are told from the source's by it."""
        for node in walk.all_nodes(self._graph):
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    if name in self._divided:
                        names[at] = f"{name}__divided"
        walk.drop(self._graph.value_info, lambda value: value.name in self._divided)

    def _take(self, maker: onnx.NodeProto, factors: Floats) -> None:
        """Multiply the channels that an operator makes."""
        if maker.op_type in ("Conv", "Gemm", "MatMul"):
            transposed = maker.op_type == "Conv" or _is_transposed(maker)
            self._scale(maker, 1, 0 if transposed else 1, factors)
            if len(maker.input) > 2 and maker.input[2]:
                self._scale(maker, 2, -1, factors)
            return
        if maker.op_type == "LayerNormalization":
            for at in range(1, len(maker.input)):
                self._scale(maker, at, 0, factors)
            return
        at = next(n for n, name in enumerate(maker.input) if name in self._tensors)
        self._scale(maker, at, 0, factors)
        if maker.op_type == "Add":
            # What it adds to was found to take the factors too.
            self._take_behind(maker.input[1 - at], factors)

    def _take_behind(self, name: str, factors: Floats) -> None:
        maker = self._makers[name]
        self._divided.add(name)
        while maker.op_type in _HOMOGENEOUS:
            self._divided.add(maker.input[0])
            maker = self._makers[maker.input[0]]
        self._take(maker, factors)

    def _between(self, name: str, last: str) -> Iterable[str]:
        while name != last:
            yield name
            name = self._makers[name].input[0]
        yield last

    def _insert(self, place: _Place, factors: Floats) -> None:
        made, constant = f"{place.tensor}__equalised", f"{place.tensor}__factors"
        shape = [1] * place.rank
        shape[place.axis] = -1
        value = factors.astype(np.float32).reshape(shape)
        self._graph.initializer.append(numpy_helper.from_array(value, constant))
        first = min(
            at
            for at, node in enumerate(self._graph.node)
            if any(node.output[0] == one.output[0] for one in place.readers)
        )
        for node in place.readers:
            node.input[0] = made
        divides = helper.make_node("Mul", [place.tensor, constant], [made], name=made)
        self._graph.node.insert(first, divides)

    def _input_axis(self, node: onnx.NodeProto) -> int:
        return 1 if node.op_type == "Conv" or _is_transposed(node) else 0

    def _largest(self, node: onnx.NodeProto) -> Floats:
        """The largest magnitude of the weights that read each channel."""
        weights = np.abs(numpy_helper.to_array(self._tensors[node.input[1]]).astype(np.float64))
        axis, groups = self._input_axis(node), _groups(node)
        if groups > 1:
            parts = weights.reshape(groups, -1, *weights.shape[1:])
            return np.asarray(
                np.moveaxis(parts, 2, 1).reshape(groups, weights.shape[1], -1).max(2)
            ).reshape(-1)
        others = tuple(n for n in range(weights.ndim) if n != axis)
        return np.asarray(weights.max(axis=others))

    def _scale(
        self, node: onnx.NodeProto, at: int, axis: int, factors: Floats, groups: int = 1
    ) -> None:
        """Multiply a constant along an axis, in a copy if others read it too."""
        old = self._tensors[node.input[at]]
        value = numpy_helper.to_array(old).astype(np.float64)
        if groups > 1 and at == 1 and axis == 1:
            parts = value.reshape(groups, -1, *value.shape[1:])
            shaped = factors.reshape(groups, 1, value.shape[1], *[1] * (value.ndim - 2))
            value = (parts * shaped).reshape(value.shape)
        elif value.ndim:
            shape = [1] * value.ndim
            shape[axis] = -1
            value = value * factors.reshape(shape)
        made = numpy_helper.from_array(
            value.astype(np.float32), f"{old.name}__of__{node.output[0]}"
        )
        if old.name == made.name or made.name in self._tensors:
            made.name += "_again"
        self._graph.initializer.append(made)
        self._tensors[made.name] = made
        node.input[at] = made.name


def _magnitudes(
    model: onnx.ModelProto, places: Sequence[_Place], batches: Iterable[Arrays], folder: Path
) -> Mapping[str, Floats]:
    """The largest magnitude of each channel of these activations."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    graph = seen.graph
    del graph.output[:]
    for number, place in enumerate(places):
        axes = np.asarray([n for n in range(place.rank) if n != place.axis], np.int64)
        graph.initializer.append(numpy_helper.from_array(axes, f"most_axes_{number}"))
        graph.node.append(helper.make_node("Abs", [place.tensor], [f"size_{number}"]))
        graph.node.append(
            helper.make_node(
                "ReduceMax",
                [f"size_{number}", f"most_axes_{number}"],
                [f"most_{number}"],
                keepdims=0,
            )
        )
        graph.output.append(
            helper.make_tensor_value_info(f"most_{number}", TensorProto.FLOAT, None)
        )
    with files.written(seen, folder / "channels.onnx") as file:
        session = OrtModel(file, providers=fastest_providers())
    found: dict[str, Floats] = {}
    for batch in batches:
        made = session.run(batch)
        for number, place in enumerate(places):
            one = made[f"most_{number}"].astype(np.float64)
            found[place.tensor] = np.maximum(found.get(place.tensor, one), one)
    return found


def _groups(node: onnx.NodeProto) -> int:
    if node.op_type != "Conv":
        return 1
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)
