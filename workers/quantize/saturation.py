"""Q/DQ graphs that ONNX Runtime computes exactly as written on every x86-64 processor.

Its kernels are exact for some integer products (``workers.quantize.integer_products``). Whenever a session
loads a graph, transformers make activations unsigned and leave weights signed. Therefore

- weights of at most 64 stay signed, like the farm's own (``workers.quantize.cpu_integers``);
- everything else dequantised from int8 is dequantised from uint8, shifted by 128, which changes no value;
- integer operators get such operands too;
- nothing is left for a session to round on its own: float weights and biases between Q and DQ, and
  activations where only the weights are quantised.

Source: the transformers qdq_s8_to_u8, weight_bias_quantization and DQMatMulToMatMulNBits of ONNX
Runtime 1.31.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.graphs import files, walk
from workers.quantize.integer_products import PRODUCTS, element_types, fits_int32, is_small

#: Added to formerly signed values.
_SHIFT = 128

_QUANTIZE, _DEQUANTIZE = walk.QDQ_OPS
#: Operators whose float weights a session quantises on its own, per tensor.
_ROUNDED_AT_LOADING = ("Conv", "ConvTranspose", "Gemm")
_CLIPS = ("Relu", "Clip")
_HAVE_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def exact_file(file: Path, folder: Path) -> Path:
    """The same file, or one of equal values that saturates in no kernel, written to ``folder``."""
    model = onnx.load(str(file), load_external_data=False)
    if not is_concerned(model):
        return file
    files.load_weights(model, file)
    made = folder / f"exact-{uuid4().hex[:8]}.onnx"
    files.write_model(exact_graph(model), made)
    return made


def is_concerned(model: onnx.ModelProto) -> bool:
    """Whether anything in a graph could be computed in integers."""
    nodes = [*walk.all_nodes(model.graph), *(n for f in model.functions for n in f.node)]
    return any(node.op_type in (*walk.QDQ_OPS, *PRODUCTS) for node in nodes)


def exact_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of equal values whose products are exact, including those in bodies.

    Parameters:
        model: with its weights loaded.
    """
    made = onnx.ModelProto()
    made.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    _Scope(graph=made.graph, types=element_types(made)).rewrite()
    walk.drop_unused(made.graph)
    return made


def _below(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node, and all nodes in its bodies."""
    yield node
    for body in walk.bodies(node):
        yield from walk.all_nodes(body)


def _given(node: onnx.NodeProto) -> Iterator[onnx.ValueInfoProto]:
    """The outputs of a node's bodies, nested ones included."""
    for below in _below(node):
        for body in walk.bodies(below):
            yield from body.output


@dataclass(kw_only=True)
class _Scope:
    """A graph, and what it sees of the enclosing ones."""

    graph: onnx.GraphProto
    types: Mapping[str, int]
    outer: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    unsigned: set[str] = field(default_factory=set)  #: tensors already quantised to uint8
    number: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        # Names in a body must differ from all names around it.
        self._end = f"__{next(self.number)}"
        nodes = list(self.graph.node)
        self._tensors = dict(self.outer) | {t.name: t for t in self.graph.initializer}
        for node in nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._tensors[node.output[0]] = node.attribute[0].t
        self._makers = {name: node for node in nodes for name in node.output}
        self._outputs = {value.name for value in self.graph.output}
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in walk.all_nodes(self.graph):
            for name in set(node.input):
                self._consumers[name].append(node)
        self._nodes: list[onnx.NodeProto] = []
        self._shifted: dict[str, str] = {}

    def rewrite(self) -> None:
        ways: dict[str, Callable[[onnx.NodeProto], None]] = {
            _QUANTIZE: self._quantize,
            _DEQUANTIZE: self._dequantize,
            **dict.fromkeys(PRODUCTS, self._multiply),
        }
        for node in self.graph.node:
            self._keep_floats(node)
            ways.get(node.op_type, lambda _node: None)(node)
            for body in walk.bodies(node):
                _Scope(
                    graph=body,
                    types=self.types,
                    outer=self._tensors,
                    unsigned=self.unsigned,
                    number=self.number,
                ).rewrite()
            self._nodes.append(node)
        self._finish()

    def _finish(self) -> None:
        used = {name for node in self._nodes for below in _below(node) for name in below.input}
        used |= self._outputs | {v.name for node in self._nodes for v in _given(node)}
        nodes = onnx.GraphProto()
        nodes.node.extend(
            node
            for node in self._nodes
            if node.op_type != _DEQUANTIZE or used.intersection(node.output)
        )
        self.graph.ClearField("node")
        self.graph.node.extend(nodes.node)
        walk.drop(self.graph.value_info, lambda value: value.name in self.unsigned)

    def _quantize(self, node: onnx.NodeProto) -> None:
        """Quantise to uint8, if all consumers are DequantizeLinear."""
        consumers = self._consumers[node.output[0]]
        if self._quantized_type(node) != TensorProto.INT8 or node.output[0] in self._outputs:
            return
        if any(consumer.op_type != _DEQUANTIZE for consumer in consumers):
            return
        self._shift_zero(node, scale=1, zero=2)
        walk.drop(node.attribute, lambda attribute: attribute.name == "output_dtype")
        self.unsigned.add(node.output[0])

    def _dequantize(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        if name not in self.unsigned:
            if self._type(name) != TensorProto.INT8 or self._are_small_weights(node):
                return
            node.input[0] = self._shift(name)
        self._shift_zero(node, scale=1, zero=2)

    def _are_small_weights(self, node: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear yields small signed weights, and only for products."""
        value = self._value(node.input[0])
        return (
            value is not None
            and is_small(value)
            and node.output[0] not in self._outputs
            and all(
                consumer.op_type in _HAVE_WEIGHTS
                and [n for n, name in enumerate(consumer.input) if name == node.output[0]] == [1]
                for consumer in self._consumers[node.output[0]]
            )
        )

    def _multiply(self, node: onnx.NodeProto) -> None:
        for operands in PRODUCTS[node.op_type]:
            right = self._type(node.input[operands.right])
            weights = self._value(node.input[operands.right])
            if weights is not None and is_small(weights):
                continue
            left = None if operands.left is None else self._type(node.input[operands.left])
            if right == TensorProto.INT8 and left != TensorProto.INT8:
                node.input[operands.right] = self._shift(node.input[operands.right])
                self._shift_zero(node, scale=None, zero=operands.right_zero)

    def _shift_zero(self, node: onnx.NodeProto, *, scale: int | None, zero: int) -> None:
        """Shift a zero point; a missing one counts as 0."""
        node.input.extend([""] * (zero + 1 - len(node.input)))
        if node.input[zero]:
            node.input[zero] = self._shift(node.input[zero])
        else:
            node.input[zero] = self._zero_of(None if scale is None else node.input[scale])

    def _zero_of(self, scale: str | None) -> str:
        """A zero point shaped like the scale, filled with 128."""
        value = self._value(scale) if scale else np.float32(1)
        if value is not None:
            name = f"{scale or 'scalar'}__zero{self._end}"
            return self._add(name, np.full(np.shape(value), _SHIFT, np.uint8))
        shape, name = f"{scale}__shape{self._end}", f"{scale}__zero{self._end}"
        if name not in self._makers:
            fill = numpy_helper.from_array(np.array([_SHIFT], np.uint8))
            self._insert(helper.make_node("Shape", [scale], [shape], name=shape))
            self._insert(
                helper.make_node("ConstantOfShape", [shape], [name], name=name, value=fill)
            )
        return name

    def _shift(self, name: str) -> str:
        """The uint8 counterpart of an int8 tensor, 128 higher."""
        if name in self._shifted:
            return self._shifted[name]
        made = f"{name}__unsigned{self._end}"
        value = self._value(name)
        if value is not None:
            self._add(made, value.view(np.uint8) ^ np.uint8(_SHIFT))
        else:
            wide, more = f"{name}__wide{self._end}", f"{name}__more{self._end}"
            shift = self._add(f"shift{self._end}", np.int32(_SHIFT))
            for operator, inputs, output, options in (
                ("Cast", [name], wide, {"to": TensorProto.INT32}),
                ("Add", [wide, shift], more, {}),
                ("Cast", [more], made, {"to": TensorProto.UINT8}),
            ):
                self._insert(helper.make_node(operator, inputs, [output], name=output, **options))
        self._shifted[name] = made
        return made

    def _keep_floats(self, node: onnx.NodeProto) -> None:
        """Keep a session from rounding what this graph keeps in floats or can't have in integers."""
        if self._quantizes_weights_alone(node):
            node.input[1] = self._dequantized(self._makers[node.input[1]])
        elif self._would_be_rounded(node) or self._has_zeros_by_channel(node):
            # No transformer removes a Max with a single input, and it costs one copy.
            name = f"{node.input[0]}__of__{node.output[0]}"
            self._insert(helper.make_node("Max", [node.input[0]], [name], name=name))
            node.input[0] = name

    def _quantizes_weights_alone(self, node: onnx.NodeProto) -> bool:
        """Whether MatMulNBits would take over, which quantises activations too or is slower than floats."""
        if node.op_type not in ("MatMul", "Gemm") or self._is_dequantized(node.input[0]):
            return False
        maker = self._makers.get(node.input[1])
        return (
            maker is not None
            and maker.op_type == _DEQUANTIZE
            and self._type(maker.input[0]) in (TensorProto.INT8, TensorProto.UINT8)
            and not any(a.name == "block_size" and a.i for a in maker.attribute)
            and all(self._value(name) is not None for name in maker.input if name)
            and self._type(maker.input[1]) == TensorProto.FLOAT
        )

    def _dequantized(self, maker: onnx.NodeProto) -> str:
        """The values of a DequantizeLinear of constants, as a constant."""
        whole, scale, *zeros = (self._value(name) for name in maker.input if name)
        assert whole is not None
        assert scale is not None
        sizes = [1] * whole.ndim if scale.size > 1 else []
        if sizes:
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
            sizes[axis] = scale.size
        from_zero = whole.astype(np.float32)
        for zero in zeros:
            assert zero is not None
            from_zero -= zero.astype(np.float32).reshape(sizes)
        values = from_zero * scale.astype(np.float32).reshape(sizes)
        return self._add(f"{maker.output[0]}__floats{self._end}", values)

    def _would_be_rounded(self, node: onnx.NodeProto) -> bool:
        """Whether a session would quantise the weights per tensor, or the bias would overflow."""
        if node.op_type not in _ROUNDED_AT_LOADING or not self._is_dequantized(node.input[0]):
            return False
        if not self._leads_to_quantize(node.output[0]):
            return False
        if not self._is_dequantized(node.input[1]):
            return self._value(node.input[1]) is not None
        bias = self._value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        scales = [self._value(self._makers[name].input[1]) for name in node.input[:2]]
        if bias is None or any(scale is None for scale in scales):
            return False
        return not fits_int32(bias, scales[0], scales[1])

    def _has_zeros_by_channel(self, node: onnx.NodeProto) -> bool:
        """Whether weights have several zero points; QLinearConv takes one value, even in a vector."""
        if node.op_type != "Conv" or not all(map(self._is_dequantized, node.input[:2])):
            return False
        maker = self._makers[node.input[1]]
        zero = self._value(maker.input[2]) if len(maker.input) > 2 else None
        return zero is not None and zero.size > 1 and bool((zero != zero.flat[0]).any())

    def _leads_to_quantize(self, name: str) -> bool:
        consumers = self._consumers[name]
        while len(consumers) == 1 and consumers[0].op_type in _CLIPS:
            consumers = self._consumers[consumers[0].output[0]]
        return len(consumers) == 1 and consumers[0].op_type == _QUANTIZE

    def _is_dequantized(self, name: str) -> bool:
        maker = self._makers.get(name)
        return maker is not None and maker.op_type == _DEQUANTIZE

    def _quantized_type(self, node: onnx.NodeProto) -> int | None:
        if len(node.input) > 2 and node.input[2]:
            return self._type(node.input[2])
        given = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
        return int(given) or TensorProto.UINT8

    def _type(self, name: str) -> int | None:
        tensor = self._tensors.get(name)
        return self.types.get(name) if tensor is None else int(tensor.data_type)

    def _value(self, name: str | None) -> NDArray[np.generic] | None:
        tensor = self._tensors.get(name or "")
        if tensor is None:
            return None
        value: NDArray[np.generic] = numpy_helper.to_array(tensor)
        return value

    def _insert(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)
        for name in node.output:
            self._makers[name] = node

    def _add(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.array(value, order="C"), name)
            self.graph.initializer.append(self._tensors[name])
        return name
