"""Chooses the operators of a graph that compute in half precision, by the values on the data at hand.

Each operator is judged by its inputs, its outputs and its internal sums (``workers.quantize.magnitudes``):

- *range*: the largest value stays below the type's largest by a margin, since other data may be larger;
  squares in a norm and sums over axes count too;
- *smallness*: the term that keeps a division, root or logarithm away from zero isn't rounded to zero;
- *steps*: the argument of a sine, and values rounded to integers, keep their small parts.

Operators that only move values keep the type of those values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from farm.specs.source import DataKind
from workers.graphs.casting import low_slots
from workers.graphs.compute import PRODUCTS
from workers.graphs.floats import HALVES, largest_of
from workers.graphs.shapes import opset_of, types_of
from workers.graphs.walk import bodies, graphs_of
from workers.quantize.half_operators import (
    KEEPS_SMALL,
    KEEPS_SQUARES,
    MOVES,
    NEVER_HALF,
    NOT_ZERO,
    SQUARE_INSIDE,
)
from workers.quantize.magnitudes import Magnitude, Magnitudes

#: How many times larger than on the data at hand values may get. Outliers of a trained network's
#: activations are within a factor of 2 to 3 of those in a hundred samples; noise between −1 and 1 says
#: nothing about pixels up to 255, and AutoCast's own bound for it is 512.
MARGINS = {DataKind.RANDOM: 128.0}
_MARGIN = 4.0
#: Below this a half keeps at most 6 of its 11 bits.
_TINY = 2.0**-18
#: If a tensor's largest value is below this, its other values are lost.
_FADED = 2.0**-12
#: The largest allowed error of a sine's argument, and of a value rounded to an integer.
_ARGUMENT_ERROR, _INTEGER_ERROR = 2.0**-8, 2.0**-2
#: The distance from 1 to the next larger number.
_STEP = {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The type of every operator that computes on floats."""

    types: Mapping[str, int] = field(default_factory=dict)  #: first output → type, except fp32
    why: Mapping[str, str] = field(default_factory=dict)  #: first output → why it is fp32

    def counts(self) -> dict[str, int]:
        """The number of operators per reason to stay in fp32."""
        made: defaultdict[str, int] = defaultdict(int)
        for reason in self.why.values():
            made[reason] += 1
        return dict(made)


def choose(
    model: onnx.ModelProto,
    magnitudes: Magnitudes,
    kind: int,
    data: DataKind,
    *,
    instead: int | None = None,
) -> Chosen:
    """Choose a half type or fp32 for every operator of an fp32 graph.

    Parameters:
        model: in normal form.
        kind: the half type.
        instead: the type for products whose values exceed the range of ``kind``; fp32 if None.
    """
    margin = MARGINS.get(data, _MARGIN)
    chooser = _Chooser(model, magnitudes, kind, margin, is_noise=data is DataKind.RANDOM)
    chosen = chooser.chosen()
    if instead is None:
        return chosen
    other = _Chooser(model, magnitudes, instead, margin, is_noise=False)
    types = dict(chosen.types)
    for node in chooser.nodes:
        name = node.output[0]
        if (
            node.op_type in PRODUCTS
            and chosen.why.get(name) == _RANGE
            and not chooser.is_quantized(node)
            and other.reason(node) is None
        ):
            types[name] = instead
    return Chosen(types=types, why={n: why for n, why in chosen.why.items() if n not in types})


def products_out_of_range(model: onnx.ModelProto, chosen: Chosen) -> bool:
    """Whether unquantised products stay in fp32 because a half type can't hold their values."""
    nodes = [node for graph in graphs_of(model) for node in graph.node if node.output]
    dequantized = {
        name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output
    }
    return any(
        node.op_type in PRODUCTS
        and chosen.why.get(node.output[0]) == _RANGE
        and not dequantized.issuperset(node.input[:2])
        for node in nodes
    )


_RANGE = "its values leave the range"
_SMALL = "it would round to zero what mustn't be"
_STEPS = "it needs smaller steps"
_NO_KERNEL = "the operator has no such type"
_UNSEEN = "no data reach it"


class _Chooser:
    def __init__(
        self,
        model: onnx.ModelProto,
        magnitudes: Magnitudes,
        kind: int,
        margin: float,
        *,
        is_noise: bool,
    ) -> None:
        self._magnitudes, self._kind, self._is_noise = magnitudes, kind, is_noise
        self._limit = largest_of(kind) / margin if kind == TensorProto.FLOAT16 else largest_of(kind)
        self._opset = opset_of(model)
        self._types = types_of(model)
        self._constants = {t.name for graph in graphs_of(model) for t in graph.initializer}
        self.nodes = [node for graph in graphs_of(model) for node in graph.node if node.output]
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._consumers[name].append(node)
        self._squares: dict[str, bool] = {}
        self._kept: dict[str, str] = {}  #: first output → why it must be exact
        self._keep_exact()

    def chosen(self) -> Chosen:
        types: dict[str, int] = {}
        why: dict[str, str] = {}
        for node in self.nodes:
            if not self._is_float(node):
                continue
            reason = self.reason(node)
            if reason is not None:
                if node.op_type != "Cast":  # computes nothing
                    why[node.output[0]] = reason
            else:
                types[node.output[0]] = self._kind
        self._leave_moved(types)
        self._follow_dequantized(types)
        return Chosen(types=types, why=why)

    def _is_float(self, node: onnx.NodeProto) -> bool:
        names = [*node.input, *node.output]
        return any(self._types.get(name) == TensorProto.FLOAT for name in names if name)

    def _leave_moved(self, types: dict[str, int]) -> None:
        """Leave operators in fp32 that move or compare fp32 values."""
        for node in self.nodes:
            name = node.output[0]
            if name not in types:
                continue
            gives = any(self._types.get(made) == TensorProto.FLOAT for made in node.output)
            if node.op_type not in MOVES and gives:
                continue
            makers = [
                self._makers.get(given)
                for given in node.input
                if self._types.get(given) == TensorProto.FLOAT and given not in self._constants
            ]
            known = [maker for maker in makers if maker is not None]
            if known and any(maker.output[0] not in types for maker in known):
                del types[name]

    def _follow_dequantized(self, types: dict[str, int]) -> None:
        """Dequantise into the consumers' type; into several if they differ."""
        for node in self.nodes:
            if node.op_type != "DequantizeLinear" or node.output[0] not in types:
                continue
            consumers = self._consumers[node.output[0]]
            if consumers and not any(each.output[0] in types for each in consumers):
                del types[node.output[0]]

    def is_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether a product is one of integers, whose sums have their own range."""
        makers = [self._makers.get(name) for name in node.input[:2]]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    def reason(self, node: onnx.NodeProto) -> str | None:
        """Why an operator must be fp32, or None."""
        if not self._can_be(node):
            return _NO_KERNEL
        if node.output[0] in self._kept:
            return self._kept[node.output[0]]
        if bodies(node):
            return self._reason_of_border(node)
        for name in self._floats(node):
            if reason := self._reason_of(name, node):
                return reason
        return self._reason_inside(node)

    def _floats(self, node: onnx.NodeProto) -> list[str]:
        names = [*node.input, *node.output]
        return [name for name in names if name and self._types.get(name) == TensorProto.FLOAT]

    def _can_be(self, node: onnx.NodeProto) -> bool:
        names = [name for name in (*node.input, *node.output) if name]
        if node.op_type in NEVER_HALF or any(not self._types.get(name) for name in names):
            return False  # 0 is a sequence, or a type that inference doesn't know
        if bodies(node):
            return True
        if node.op_type == "Cast":
            return bool(self._types.get(node.input[0]) == TensorProto.FLOAT)
        if any(a.name == "output_dtype" and a.i for a in node.attribute):
            return False
        count = len(node.output)
        gives = low_slots(node.op_type, self._opset, self._kind, count, inputs=False)
        takes = low_slots(node.op_type, self._opset, self._kind, len(node.input), inputs=True)
        are_floats = [self._types.get(name) == TensorProto.FLOAT for name in node.output]
        if any(are_floats):
            return any(low and is_ for low, is_ in zip(gives, are_floats, strict=True))
        return any(takes)

    def _reason_of(self, name: str, node: onnx.NodeProto) -> str | None:
        magnitude = self._magnitudes.get(name)
        if magnitude is None:
            return _UNSEEN
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and name == node.input[1]:
            # Scales are known constants with a range of their own.
            fits = _TINY * 4 <= magnitude.most <= largest_of(self._kind)
            return None if fits or self._kind != TensorProto.FLOAT16 else _SMALL
        limit = largest_of(self._kind) if name in self._constants else self._limit
        if not magnitude.most <= limit:  # NaN fits nowhere
            return _RANGE
        if self._kind != TensorProto.FLOAT16 or not 0 < magnitude.most < _FADED:
            return None
        if name in self._constants and (node.op_type in PRODUCTS or magnitude.most > 2 * _TINY):
            return None
        return _SMALL

    def _reason_inside(self, node: onnx.NodeProto) -> str | None:
        if self._kind != TensorProto.FLOAT16:
            return None
        if node.op_type in SQUARE_INSIDE:
            given = self._magnitudes.get(node.input[0], Magnitude(most=0.0)).most
            if not given * given <= self._limit:
                return _RANGE
        if self._is_noise and self._is_of_squares(node):
            return _RANGE
        inner = self._magnitudes.get(node.output[0], Magnitude(most=0.0)).inner
        return None if inner <= self._limit else _RANGE

    def _is_of_squares(self, node: onnx.NodeProto) -> bool:
        """Whether it consumes or produces squares or sums of them, which grow with the data's square."""
        if node.op_type in PRODUCTS:
            return False
        return any(self._is_square(name, 0) for name in self._floats(node))

    def _is_square(self, name: str, depth: int) -> bool:
        maker = self._makers.get(name)
        if maker is None or depth > _DEPTH:
            return False
        if name not in self._squares:
            is_square = maker.op_type == "Pow" or (
                maker.op_type == "Mul" and maker.input[0] == maker.input[1]
            )
            if not is_square and maker.op_type in KEEPS_SQUARES:
                is_square = any(self._is_square(given, depth + 1) for given in maker.input)
            self._squares[name] = is_square
        return self._squares[name]

    def _reason_of_border(self, node: onnx.NodeProto) -> str | None:
        """For an If, Loop or Scan: everything that goes in and comes out has one type."""
        names = self._floats(node)
        for body in bodies(node):
            names += [
                value.name
                for value in (*body.input, *body.output)
                if self._types.get(value.name) == TensorProto.FLOAT
            ]
            if any(not self._types.get(value.name) for value in (*body.input, *body.output)):
                return _NO_KERNEL
        reasons = [reason for name in names if (reason := self._reason_of(name, node))]
        return reasons[0] if reasons else None

    def _keep_exact(self) -> None:
        for node in self.nodes:
            if node.op_type in NOT_ZERO and self._kind == TensorProto.FLOAT16:
                name = node.input[NOT_ZERO[node.op_type]]
                if self._types.get(name) == TensorProto.FLOAT and self._keep_small(name, 0):
                    self._kept.setdefault(node.output[0], _SMALL)
            if node.op_type in ("Sin", "Cos"):
                self._keep_steps(node, _ARGUMENT_ERROR)
            if node.op_type == "Cast" and self._gives_integers(node):
                self._keep_steps(node, _INTEGER_ERROR)

    def _gives_integers(self, node: onnx.NodeProto) -> bool:
        made = self._types.get(node.output[0], 0)
        return made not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL, *HALVES)

    def _keep_small(self, name: str, depth: int) -> bool:
        """Keep exact what makes up a denominator, from where it gets small. Returns whether it does."""
        maker = self._makers.get(name)
        magnitude = self._magnitudes.get(name)
        is_small = magnitude is not None and 0 < magnitude.least < _TINY
        if name in self._constants:
            return is_small
        if maker is not None and maker.op_type in KEEPS_SMALL and depth < _DEPTH:
            if maker.op_type in ("Add", "Max", "Clip"):
                is_small = is_small or any(map(self._is_tiny_constant, maker.input))
            else:
                inputs = [n for n in maker.input if self._types.get(n) == TensorProto.FLOAT]
                small = [
                    self._keep_small(name, depth + 1) for name in inputs
                ]  # a list: all of them must be visited
                is_small = is_small or any(small)
        if is_small and maker is not None:
            self._kept.setdefault(maker.output[0], _SMALL)
        return is_small

    def _is_tiny_constant(self, name: str) -> bool:
        if name not in self._constants or name not in self._magnitudes:
            return False
        return 0 < self._magnitudes[name].most < _TINY / 4

    def _keep_steps(self, node: onnx.NodeProto, error: float) -> None:
        """Keep exact whatever computes a value whose small parts matter."""
        name = node.input[0]
        magnitude = self._magnitudes.get(name)
        if self._types.get(name) != TensorProto.FLOAT or magnitude is None:
            return
        if magnitude.most * _STEP[self._kind] <= error:
            return
        self._kept.setdefault(node.output[0], _STEPS)
        for _ in range(_DEPTH):
            maker = self._makers.get(name)
            if maker is None:
                return
            self._kept.setdefault(maker.output[0], _STEPS)
            floats = [n for n in maker.input if self._types.get(n) == TensorProto.FLOAT]
            if maker.op_type not in MOVES or not floats:
                return
            name = floats[0]
