"""INT8 graphs for CPUs: adds what ONNX Runtime needs around an operator to compute it in integers.

ModelOpt places Q/DQ for GPUs: before an operator. ONNX Runtime's integer kernels for CPUs add integer
biases and want all activations in one type; the one for convolutions also outputs integers. Therefore

- activations become uint8: signed ones are shifted by 128, which changes no value; never-negative ones
  use 0 to 255 over the same range, which makes their Relu part of the rounding;
- weights are rounded to seven bits, which saturate in no kernel, and stay signed, the fastest form in all;
- a convolution's unquantised result is quantised, over a measured range;
- biases become int32 with the scale of the sum;
- whatever separates a matrix product from its integer kernel is rewritten.

Source: the QDQ selectors of ONNX Runtime; Jacob et al., Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference, CVPR 2018.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from workers.graphs import shapes, walk
from workers.quantize.integer_products import LARGEST_WEIGHT, fits_int32

Ranges = Callable[[Sequence[str]], Mapping[str, float]]
"""The magnitude up to which each of these tensors is rounded."""

_SIGNED_LEVELS, _UNSIGNED_LEVELS = 127, 255
_ZERO = {True: np.uint8(128), False: np.uint8(0)}  #: whether it is signed → its zero point
#: Operators whose kernel outputs nothing but integers.
_GIVE_INTEGERS = ("Conv",)
_HAVE_BIASES = ("Conv", "Gemm")
_HAVE_WEIGHTS = ("Conv", "Gemm", "MatMul")
_MATRIX = 2  #: axes
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax")
_KEEP_SIGNS = (
    *walk.QDQ_OPS,
    "AveragePool",
    "Flatten",
    "GlobalAveragePool",
    "Identity",
    "MaxPool",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def integer_graph(
    model: onnx.ModelProto, ranges: Ranges, *, keep_levels: bool = False
) -> onnx.ModelProto:
    """The graph with everything ONNX Runtime needs to compute it in integers.

    Parameters:
        model: with int8 Q/DQ, and fp32 between them.
        ranges: called once, with the unquantised tensors that should be quantised.
        keep_levels: keep the levels of the graph's own Q/DQ, which the model was trained for; otherwise
            never-negative values get twice as many levels, and weights half as many.
    """
    rewriter = _Rewriter(model)
    if not keep_levels:
        rewriter.narrow_weights()
    rewriter.quantize_results(ranges)
    if keep_levels:
        rewriter.clip_in_integers()
    else:
        rewriter.make_activations_unsigned()
    rewriter.quantize_biases()
    rewriter.set_clips_apart()
    return rewriter.result()


def with_results_quantized(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """The graph with Q/DQ also where its integer kernels will give integers, over these ranges."""
    rewriter = _Rewriter(model)
    rewriter.quantize_results(ranges)
    return rewriter.result()


def narrowed_by() -> float:
    """How much coarser weights are rounded for CPUs."""
    return _SIGNED_LEVELS / LARGEST_WEIGHT


def _shift(zero: NDArray[np.generic]) -> int:
    """The offset that makes a quantised type unsigned."""
    return 128 if zero.dtype == np.int8 else 0


def _level(limit: float, scale: NDArray[np.float32], zero: NDArray[np.generic]) -> np.uint8:
    """The unsigned level to which a value is rounded."""
    level = np.rint(np.float32(limit) / scale) + int(zero) + _shift(zero)
    return np.uint8(np.clip(level, 0, 255))


class _Rewriter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self._nodes = list(graph.node)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._made: list[onnx.TensorProto] = []
        self._outputs = {value.name for value in graph.output}
        self._matrices = {
            value.name
            for value in shapes.inferred_of(model).graph.value_info
            if len(value.type.tensor_type.shape.dim) == _MATRIX
        }
        self._index()

    def _index(self) -> None:
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self._nodes:
            bodies = (below for body in walk.bodies(node) for below in walk.all_nodes(body))
            for consumer in (node, *bodies):
                for name in consumer.input:
                    self._consumers[name].append(consumer)

    def result(self) -> onnx.ModelProto:
        graph = self._model.graph
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]  # it still declares int8 where there is uint8 now
        graph.initializer.extend(self._made)
        walk.drop_unused(graph)
        return self._model

    def narrow_weights(self) -> None:
        """Give products' weights the slightly smaller range in which none saturates."""
        ratio = np.float32(_SIGNED_LEVELS / LARGEST_WEIGHT)
        for node in self._nodes:
            if node.op_type not in _HAVE_WEIGHTS or not self._is_quantized(node, node.op_type):
                continue
            maker = self._makers[node.input[1]]
            weights, scale = self._value(maker.input[0]), self._scale(maker)
            zero = self._value(maker.input[2]) if len(maker.input) > 2 else np.int8(0)
            if weights is None or scale is None or weights.dtype != np.int8:
                continue
            if zero is None or np.any(zero) or np.abs(weights.astype(int)).max() <= LARGEST_WEIGHT:
                continue
            if any(one.op_type not in _HAVE_WEIGHTS for one in self._consumers[maker.output[0]]):
                continue
            narrow = np.clip(
                np.rint(weights.astype(np.float32) / ratio), -LARGEST_WEIGHT, LARGEST_WEIGHT
            )
            maker.input[0] = self._add(f"{maker.input[0]}__narrow", narrow.astype(np.int8))
            maker.input[1] = self._add(f"{maker.output[0]}__scale", scale * ratio)

    def quantize_results(self, ranges: Ranges) -> None:
        """Quantise the results of quantised operators that aren't quantised yet."""
        ends = [
            self._end(node) for node in self._nodes if self._is_quantized(node, *_GIVE_INTEGERS)
        ]
        missing = [
            name
            for name in ends
            if name not in self._outputs
            and any(node.op_type != "QuantizeLinear" for node in self._consumers[name])
        ]
        limits = ranges(missing) if missing else {}
        for name in missing:
            if limits[name] > 0:
                self._insert_pair(name, np.float32(limits[name] / _SIGNED_LEVELS))
        self._index()

    def make_activations_unsigned(self) -> None:
        for node in self._nodes:
            if not self._is_of_activation(node):
                continue
            scale, zero = self._scale(node), self._value(node.input[2])
            if scale is None or zero is None or zero.dtype != np.int8 or zero.any() or scale.ndim:
                continue
            signed = not self._is_never_negative(node.input[0])
            if not signed:
                scale = scale * np.float32(_SIGNED_LEVELS / _UNSIGNED_LEVELS)
            names = [
                self._add(f"{node.output[0]}__scale", scale),
                self._add(f"{node.output[0]}__zero", np.asarray(_ZERO[signed])),
            ]
            for pair in (node, *self._consumers[node.output[0]]):
                pair.input[1], pair.input[2] = names

    def _is_of_activation(self, node: onnx.NodeProto) -> bool:
        """Whether it is a QuantizeLinear with a zero point, consumed only by DequantizeLinear."""
        if node.op_type != "QuantizeLinear" or node.input[0] in self._tensors:
            return False
        if len(node.input) < 3 or not node.input[2] or node.output[0] in self._outputs:
            return False
        consumers = self._consumers[node.output[0]]
        return all(
            consumer.op_type == "DequantizeLinear" and len(consumer.input) > 2
            for consumer in consumers
        )

    def clip_in_integers(self) -> None:
        """Move each Relu or Clip between a quantised product and its Q behind the Q.

        Rounding preserves order, so no value changes. Before the Q, ONNX Runtime absorbs the clip into
        the rounding only if that has no level below it, and otherwise leaves everything in floats.
        """
        for node in list(self._nodes):
            if not self._is_of_activation(node):
                continue
            zero, scale = self._value(node.input[2]), self._scale(node)
            clip = self._makers.get(node.input[0])
            if zero is None or zero.ndim or scale is None or clip is None:
                continue
            if zero.dtype not in (np.int8, np.uint8):
                continue
            if zero.dtype == np.uint8 and not zero and clip.op_type == "Relu":
                continue  # ONNX Runtime sees that the rounding clips already
            limits = self._limits(clip)
            if limits is None or not self._ends_product(clip.input[0]):
                continue
            if self._only_consumer(clip) is not node or clip.output[0] in self._outputs:
                continue
            self._swap(clip, node, [_level(limit, scale, zero) for limit in limits])
        self._index()

    def _swap(
        self, clip: onnx.NodeProto, rounding: onnx.NodeProto, limits: Sequence[np.uint8]
    ) -> None:
        """Clip after rounding to uint8, and retype all consumers of what was int8."""
        clipped = rounding.output[0]
        scale, zero = self._scale(rounding), self._value(rounding.input[2])
        assert scale is not None
        assert zero is not None
        shifted = np.asarray(zero.astype(np.int32) + _shift(zero)).astype(np.uint8)
        names = [
            self._add(f"{clipped}__scale", scale),
            self._add(f"{clipped}__zero", shifted),
        ]
        for pair in (rounding, *self._consumers[clipped]):
            pair.input[1], pair.input[2] = names
        rounded = f"{clipped}__before_it_is_clipped"
        bounds = [self._add(f"{clipped}__limit_{n}", limit) for n, limit in enumerate(limits)]
        made = helper.make_node("Clip", [rounded, *bounds], [clipped], name=clip.name or clipped)
        rounding.input[0], rounding.output[0] = clip.input[0], rounded
        self._nodes.insert(self._nodes.index(rounding) + 1, made)
        self._nodes.remove(clip)

    def _limits(self, clip: onnx.NodeProto) -> tuple[float, float] | None:
        if clip.op_type == "Relu":
            return 0.0, float("inf")
        if clip.op_type != "Clip":
            return None
        limits = [-float("inf"), float("inf")]
        for n, name in enumerate(clip.input[1:3]):
            if name:
                value = self._value(name)
                if value is None:
                    return None
                limits[n] = float(value.reshape(-1)[0])
        return limits[0], limits[1]

    def _ends_product(self, name: str) -> bool:
        """Whether a quantised product, or its bias's Add, makes this for a single consumer."""
        maker = self._makers.get(name)
        if maker is None or len(self._consumers[name]) != 1 or name in self._outputs:
            return False
        if maker.op_type == "Add":
            made = [self._makers.get(given) for given in maker.input]
            return any(one is not None and self._is_quantized(one, "MatMul") for one in made)
        return self._is_quantized(maker, "Conv", "Gemm", "MatMul")

    def _is_never_negative(self, name: str) -> bool:
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in _KEEP_SIGNS:
            maker = self._makers.get(maker.input[0])
        return maker is not None and maker.op_type in _NEVER_NEGATIVE

    def quantize_biases(self) -> None:
        for node in list(self._nodes):
            if self._is_quantized(node, *_HAVE_BIASES) and len(node.input) > 2:
                self._quantize_bias(node, node, 2)
            elif self._is_quantized(node, "MatMul") and node.output[0] in self._matrices:
                # ONNX Runtime fuses both into a Gemm, for which it has no kernel with a float bias.
                added = self._only_consumer(node)
                if added is not None and added.op_type == "Add":
                    index = 1 - list(added.input).index(node.output[0])
                    self._quantize_bias(node, added, index)

    def _quantize_bias(self, node: onnx.NodeProto, adds: onnx.NodeProto, index: int) -> None:
        """Quantise the bias of a product, which is an input of ``adds``."""
        bias = self._value(adds.input[index])
        given, weights = (self._scale(self._makers[name]) for name in node.input[:2])
        if bias is None or given is None or weights is None or given.ndim:
            return
        scale = np.asarray(given * weights)
        if bias.ndim != 1 or (scale.ndim and scale.shape != bias.shape):
            return
        if not fits_int32(bias, given, weights):
            return
        whole = np.rint(bias / scale.astype(np.float64))
        name = f"{adds.input[index]}__of__{node.output[0]}"
        inputs = [
            self._add(f"{name}__whole", whole.astype(np.int32)),
            self._add(f"{name}__scale", scale),
            self._add(f"{name}__zero", np.zeros(scale.shape, np.int32)),
        ]
        axis = {"axis": 0} if scale.ndim else {}
        made = helper.make_node("DequantizeLinear", inputs, [name], name=name, **axis)
        self._nodes.insert(self._nodes.index(node), made)
        adds.input[index] = name

    def set_clips_apart(self) -> None:
        """Rewrite a Relu or Clip after a matrix product, unless its result is quantised.

        ONNX Runtime absorbs it into the quantisation, and without one leaves everything in floats.
        """
        for node in list(self._nodes):
            if not self._is_quantized(node, "MatMul", "Gemm"):
                continue
            clip = self._only_consumer(node)
            if clip is not None and clip.op_type == "Add":
                clip = self._only_consumer(clip)
            if clip is None or clip.op_type not in ("Relu", "Clip"):
                continue
            consumers = self._consumers[clip.output[0]]
            is_rounded = all(one.op_type == "QuantizeLinear" for one in consumers)
            if is_rounded and clip.output[0] not in self._outputs:
                continue
            if clip.op_type == "Relu":
                clip.op_type = "Max"
                clip.input.append(self._add(f"{clip.output[0]}__least", np.float32(0)))
            else:
                name = f"{clip.input[0]}__as_it_is"
                made = helper.make_node("Max", [clip.input[0]], [name], name=name)
                self._nodes.insert(self._nodes.index(clip), made)
                clip.input[0] = name

    def _only_consumer(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        consumers = self._consumers[node.output[0]]
        return consumers[0] if len(consumers) == 1 else None

    def _is_quantized(self, node: onnx.NodeProto, *kinds: str) -> bool:
        if node.op_type not in kinds:
            return False
        makers = [self._makers.get(name) for name in node.input[:2]]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    def _end(self, node: onnx.NodeProto) -> str:
        """The output of an operator, or of its Relu if that is its only consumer."""
        name: str = node.output[0]
        consumers = self._consumers[name]
        if len(consumers) == 1 and consumers[0].op_type == "Relu" and name not in self._outputs:
            return str(consumers[0].output[0])
        return name

    def _insert_pair(self, name: str, scale: NDArray[np.float32] | np.float32) -> None:
        shared = [
            self._add(f"{name}__scale", np.asarray(scale)),
            self._add(f"{name}__zero", np.asarray(np.int8(0))),
        ]
        quantized, dequantized = f"{name}__quantized", f"{name}__dequantized"
        for consumer in self._consumers[name]:
            for index, given in enumerate(consumer.input):
                if given == name:
                    consumer.input[index] = dequantized
        pair = [
            helper.make_node("QuantizeLinear", [name, *shared], [quantized], name=quantized),
            helper.make_node(
                "DequantizeLinear", [quantized, *shared], [dequantized], name=dequantized
            ),
        ]
        at = self._nodes.index(self._makers[name]) + 1
        self._nodes[at:at] = pair

    def _scale(self, pair: onnx.NodeProto) -> NDArray[np.float32] | None:
        """The scale of a QuantizeLinear or DequantizeLinear."""
        value = self._value(pair.input[1])
        return None if value is None else value.astype(np.float32)

    def _value(self, name: str) -> NDArray[np.generic] | None:
        tensor = self._tensors.get(name)
        maker = self._makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
        value: NDArray[np.generic] | None = (
            None if tensor is None else numpy_helper.to_array(tensor)
        )
        return value

    def _add(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self._tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        self._made.append(self._tensors[name])
        return name
