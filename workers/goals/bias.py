"""Fast bias correction: takes out of a quantised product's result the mean error that rounding gives it.

A channel's mean error is the weights' rounding times the inputs' means, and the weights times the error of
those means, as far as a padding doesn't change them. One pass over the graph gives the means.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.goals import harm
from workers.goals.units import Edge, Units
from workers.graphs import files, shapes
from workers.inputs.samples import Arrays
from workers.quantize.stored_weights import quantised_values

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A Q/DQ graph with corrected biases.

    Parameters:
        before: product → the operator that adds its bias, by its first output, the bias's position, and its
            name before.
    """

    model: onnx.ModelProto
    before: Mapping[str, tuple[str, int, str]]

    def without(self, floats: Collection[str]) -> onnx.ModelProto:
        """A copy in which these products have the biases that they had: in floats they err in nothing."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        nodes = {node.output[0]: node for node in made.graph.node if node.output}
        for product in self.before.keys() & set(floats):
            adds, at, name = self.before[product]
            nodes[adds].input[at] = name
        return made


def corrected(
    model: onnx.ModelProto,
    units: Units,
    batches: Iterable[Arrays],
    folder: Path,
    *,
    seven_bits: bool = False,
) -> Corrected | None:
    """A copy of a Q/DQ graph with corrected biases; None if it has none to correct.

    Parameters:
        seven_bits: correct what weights lose in the seven bits that CPUs get.
    """
    return _Corrector(model, units, folder, seven_bits=seven_bits).corrected(batches)


class _Corrector:
    def __init__(
        self, model: onnx.ModelProto, units: Units, folder: Path, *, seven_bits: bool
    ) -> None:
        self._folder = folder
        self._before: dict[str, tuple[str, int, str]] = {}
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        #: The same graph, with weights as they will be rounded.
        self._judged = onnx.ModelProto()
        self._judged.CopyFrom(model)
        if seven_bits:
            harm.narrow(self._judged)
        self._constants = {tensor.name: tensor for tensor in self._judged.graph.initializer}
        self._nodes = {node.output[0]: node for node in graph.node if node.output}
        self._makers = {name: node for node in graph.node for name in node.output}
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in [*shapes.inferred_of(model).graph.value_info, *graph.input]
            if value.type.tensor_type.HasField("shape")
        }
        by_consumer: dict[str, dict[int, Edge]] = {}
        for edge in units.edges:
            by_consumer.setdefault(edge.consumer, {})[edge.position] = edge
        #: Product → its edges of activation and weights, and the activation's channel axis.
        self._products: dict[str, tuple[Edge, Edge, int, int]] = {}
        for unit in units.products:
            given, weights = (by_consumer.get(unit.id, {}).get(at) for at in (0, 1))
            if given is None or weights is None or given.is_constant or not weights.is_constant:
                continue
            rank = ranks.get(given.tensor)
            node = self._nodes[unit.id]
            if rank is None or rank < 2 or not self._bias_of(node):
                continue
            axis = 1 if node.op_type == "Conv" else rank - 1
            self._products[unit.id] = given, weights, axis, rank

    def corrected(self, batches: Iterable[Arrays]) -> Corrected | None:
        if not self._products:
            return None
        means = self._means(batches)
        for product, (given, weights, axis, _) in self._products.items():
            before, after = means[given.dequantized, axis]
            error = self._error(self._nodes[product], weights, before, after)
            if error is not None and np.isfinite(error).all():
                self._add(self._nodes[product], -error)
        return Corrected(model=self._model, before=self._before)

    def _bias_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
        """The operator that adds a product's bias, and the bias's position."""
        if any(a.name in ("transA",) and a.i for a in node.attribute):
            return None
        if node.op_type in ("Conv", "Gemm"):
            has_none = len(node.input) <= 2 or not node.input[2]
            return (node, 2) if has_none or node.input[2] in self._tensors else None
        if node.op_type != "MatMul":
            return None
        readers = [one for one in self._model.graph.node if node.output[0] in one.input]
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        at = 1 - list(readers[0].input).index(node.output[0])
        bias = self._tensors.get(readers[0].input[at])
        return (readers[0], at) if bias is not None and len(bias.dims) == 1 else None

    def _means(self, batches: Iterable[Arrays]) -> Mapping[tuple[str, int], tuple[Floats, Floats]]:
        """Dequantised tensor and axis → the means of each channel, unrounded and rounded."""
        wanted = {
            (given.dequantized, axis): (given.tensor, rank)
            for given, _, axis, rank in self._products.values()
        }
        seen = onnx.ModelProto()
        seen.CopyFrom(self._judged)
        graph = seen.graph
        del graph.output[:]
        axes: dict[str, list[int]] = {}
        for number, ((dequantized, axis), (tensor, rank)) in enumerate(wanted.items()):
            kept = [one for one in range(rank) if one != axis]
            for kind, name in (("before", tensor), ("after", dequantized)):
                made = f"mean_{kind}_{number}"
                axes[f"{made}_axes"] = kept
                graph.node.append(
                    helper.make_node("ReduceMean", [name, f"{made}_axes"], [made], keepdims=0)
                )
                graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, None))
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(kept, np.int64), name) for name, kept in axes.items()
        )
        with files.written(seen, self._folder / "means.onnx") as file:
            session = OrtModel(file, providers=fastest_providers())
        sums: dict[str, Floats] = {}
        count = 0
        for batch in batches:
            for name, mean in session.run(batch).items():
                sums[name] = sums.get(name, np.zeros(())) + mean.astype(np.float64)
            count += 1
        return {
            key: (sums[f"mean_before_{n}"] / count, sums[f"mean_after_{n}"] / count)
            for n, key in enumerate(wanted)
        }

    def _error(
        self, node: onnx.NodeProto, weights: Edge, before: Floats, after: Floats
    ) -> Floats | None:
        """The mean error of each channel of a product's result."""
        whole = numpy_helper.to_array(self._tensors[weights.tensor]).astype(np.float64)
        rounded = self._rounded(weights)
        if rounded is None:
            return None
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            flat = [one.reshape(*one.shape[:2], -1).sum(axis=2) for one in (whole, rounded)]
            outs, ins = flat[0].shape
            if outs % groups or len(before) != ins * groups:
                return None
            shape = (groups, outs // groups, ins)
            means = [one.reshape(groups, ins) for one in (before, after)]
            left, right = (
                np.einsum("goi,gi->go", one.reshape(shape), mean).reshape(-1)
                for one, mean in zip(flat, means, strict=True)
            )
            found: Floats = right - left
            return found
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        matrices = [one.T if is_transposed else one for one in (whole, rounded)]
        if matrices[0].ndim != 2 or len(before) != len(matrices[0]):
            return None
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        product: Floats = alpha * (after @ matrices[1] - before @ matrices[0])
        return product

    def _rounded(self, weights: Edge) -> Floats | None:
        quantize = self._makers[self._makers[weights.dequantized].input[0]]
        return quantised_values(quantize, self._constants)

    def _add(self, node: onnx.NodeProto, error: Floats) -> None:
        found = self._bias_of(node)
        assert found is not None
        adds, at = found
        name = f"{node.output[0]}__corrected_bias"
        beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
        old = np.zeros(len(error))
        if len(adds.input) > at and adds.input[at]:
            old = numpy_helper.to_array(self._tensors[adds.input[at]]).astype(np.float64)
        if beta == 0 or old.shape not in ((), error.shape, (1, *error.shape)):
            return
        value = (old + error / beta).astype(np.float32)
        while len(adds.input) <= at:
            adds.input.append("")
        self._before[node.output[0]] = adds.output[0], at, adds.input[at]
        adds.input[at] = name
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
