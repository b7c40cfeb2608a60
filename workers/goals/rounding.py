"""A Q/DQ graph whose weights are rounded by what their products read, instead of each to the nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from workers.goals import gptq, moments
from workers.goals.moments import Kernel, Reader
from workers.goals.units import Edge, Units
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import cpu_integers
from workers.quantize.integer_products import LARGEST_WEIGHT
from workers.quantize.stored_weights import quantised_values, shaped_scale

#: Of the moments that are in memory at once; a product whose own take more keeps its weights.
_MOST_BYTES = 1 << 30
#: Numbers for each two inputs: two moments, of most samples and of those kept apart.
_MOMENTS = 4
_LARGEST = 127
_MATRIX = 2  #: axes


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A Q/DQ graph with other weights, and beside them those that it had, for products in floats.

    Parameters:
        before: weights → those that they were made from.
    """

    model: onnx.ModelProto
    before: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A product's weights as the rounding sees them.

    Parameters:
        rows: groups × outputs × inputs.
        scale: of eight bits, groups × outputs × 1.
        back: makes what has the shape of rows the tensor again.
    """

    name: str
    quantize: onnx.NodeProto
    rows: gptq.Floats
    scale: gptq.Floats
    back: Callable[[gptq.Floats], gptq.Floats]


_Product = tuple[Reader, _Weights]


def rounded(
    model: onnx.ModelProto,
    judged: onnx.ModelProto,
    units: Units,
    batches: Sequence[Arrays],
    batch: Batch,
    folder: Path,
    *,
    seven_bits: bool,
    has_time: Callable[[], bool],
) -> Rounded | None:
    """A copy of a Q/DQ graph with weights that lose less; None if none do, or without the time.

    Parameters:
        model: as ModelOpt has quantised it, weights still in floats before their Q.
        judged: the same with what its engines round besides, which says what products read.
        seven_bits: whether CPUs get these weights, which round them to seven bits.
    """
    found = dict(_products(model, units))
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = {node.output[0]: node for node in made.graph.node if node.output}
    before: dict[str, str] = {}
    for some in _chunks(found):
        readers = {product: one for product, (one, _) in some.items()}
        seen = moments.gathered(judged, readers, batches, batch, folder, has_time)
        if seen is None:
            return None
        for product, (_, weights) in some.items():
            if not has_time():
                return None
            values = _values(weights, *seen.pop(product), seven_bits=seven_bits)
            if values is None:
                continue
            name = f"{weights.name}__of__{product}__rounded"
            before[name] = weights.name
            nodes[weights.quantize.output[0]].input[0] = name
            made.graph.initializer.append(numpy_helper.from_array(values, name))
    print(f"weights of {len(before)} of {len(found)} products are rounded anew", flush=True)
    return Rounded(model=made, before=before) if before else None


def _chunks(found: Mapping[str, _Product]) -> Iterator[dict[str, _Product]]:
    """Products whose moments fit into memory together."""
    taken: dict[str, _Product] = {}
    taken_bytes = 0
    for product, one in found.items():
        own = _bytes(one[0].shape)
        if taken and taken_bytes + own > _MOST_BYTES:
            yield taken
            taken, taken_bytes = {}, 0
        taken[product] = one
        taken_bytes += own
    if taken:
        yield taken


def _bytes(shape: tuple[int, int, int]) -> int:
    groups, _, inputs = shape
    return _MOMENTS * np.dtype(np.float64).itemsize * groups * inputs**2


def _values(
    weights: _Weights, fit: gptq.Moments, held: gptq.Moments, *, seven_bits: bool
) -> NDArray[np.float32] | None:
    """Weights that rounding to the nearest leaves as they are; None if all channels keep theirs."""
    scale = np.where(weights.scale > 0, weights.scale, 1.0)
    most = LARGEST_WEIGHT if seven_bits else _LARGEST
    # What fits into seven bits as it is stays as fine.
    is_wide = seven_bits and np.abs(np.rint(weights.rows / scale)).max() > most
    step = scale * cpu_integers.narrowed_by() if is_wide else scale
    levels = gptq.Levels(step=step, most=most)
    made, changed = gptq.rounded(weights.rows, levels, fit, held)
    if not changed:
        return None
    # Seven bits are what CPUs make of eight: these are the eight that become those.
    return weights.back(np.rint(made / scale) * scale).astype(np.float32)


def _products(
    model: onnx.ModelProto, units: Units
) -> Iterator[tuple[str, tuple[Reader, _Weights]]]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    edges: dict[str, dict[int, Edge]] = {}
    for edge in units.edges:
        edges.setdefault(edge.consumer, {})[edge.position] = edge
    for unit in units.products:
        given, of = (edges.get(unit.id, {}).get(at) for at in (0, 1))
        if given is None or of is None or given.is_constant or not of.is_constant:
            continue
        quantize = makers[makers[of.dequantized].input[0]]
        if readers[of.dequantized] > 1 or readers[quantize.output[0]] > 1:
            continue  # several products share them
        weights = _weights(makers[unit.id], quantize, tensors)
        if weights is None:
            continue
        groups, outputs, inputs = weights.rows.shape
        if _bytes((groups, outputs, inputs)) > _MOST_BYTES:
            continue
        kernel = None
        if makers[unit.id].op_type == "Conv":
            kernel = Kernel.of(makers[unit.id], tensors[of.tensor].dims[2:])
            if kernel is None:
                continue
        reader = Reader(
            plain=given.tensor,
            rounded=given.dequantized,
            shape=(groups, outputs, inputs),
            kernel=kernel,
        )
        yield unit.id, (reader, weights)


def _weights(
    node: onnx.NodeProto, quantize: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]
) -> _Weights | None:
    """None for what isn't a symmetric int8 rounding, channel by channel or of all of a tensor."""
    if quantised_values(quantize, tensors) is None:
        return None
    if tensors[quantize.input[2]].data_type != TensorProto.INT8:
        return None
    values = numpy_helper.to_array(tensors[quantize.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(tensors[quantize.input[1]])
    scales = np.broadcast_to(shaped_scale(quantize, values, scale), values.shape)
    given = {one.name: one for one in node.attribute}
    if node.op_type == "Conv":
        groups = given["group"].i if "group" in given else 1
        shape = (groups, len(values) // groups, -1)
        rows, scales = values.reshape(shape), scales.reshape(shape)

        def back(made: gptq.Floats) -> gptq.Floats:
            return made.reshape(values.shape)

    elif node.op_type in ("MatMul", "Gemm") and values.ndim == _MATRIX:
        if "transA" in given and given["transA"].i:
            return None
        is_across = not ("transB" in given and given["transB"].i)
        rows, scales = ((one.T if is_across else one)[None] for one in (values, scales))

        def back(made: gptq.Floats) -> gptq.Floats:
            found: gptq.Floats = made[0].T if is_across else made[0]
            return found

    else:
        return None
    if (scales != scales[..., :1]).any():
        return None
    return _Weights(
        name=quantize.input[0],
        quantize=quantize,
        rows=rows,
        scale=scales[..., :1].astype(np.float64),
        back=back,
    )
