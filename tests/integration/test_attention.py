"""Attention that is written out becomes one operator, and computes the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim, export

from workers.backends.ort.cpu import OrtModel
from workers.graphs.attention import OPERATOR, fused
from workers.graphs.dimensions import sizes_of
from workers.graphs.normal import normalised
from workers.measure.difference import difference
from workers.stages.export import exporter

HEADS, HEAD = 4, 8
HIDDEN = HEADS * HEAD
#: (batch, sequence): one sample, one token, and more of both.
SIZES = [(1, 1), (1, 5), (3, 1), (3, 7)]


class Attention(nn.Module):
    def __init__(self, scale: float | None = None, causal: bool = False) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.scale, self.causal = scale, causal

    def forward(self, x: torch.Tensor, m: torch.Tensor | None = None) -> torch.Tensor:
        batch, tokens, _ = x.shape
        parts = self.project(x).chunk(3, -1)
        query, key, value = (p.view(batch, tokens, HEADS, HEAD).transpose(1, 2) for p in parts)
        made = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=m, scale=self.scale, is_causal=self.causal
        )
        return self.out(made.transpose(1, 2).reshape(batch, tokens, HIDDEN))


class Keys(Attention):
    def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return super().forward(x, m[:, None, None, :])


class Rows(Attention):
    def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return super().forward(x, (m[:, None, :, None] & m[:, None, None, :]))


def exported(module: nn.Module, *more: torch.Tensor) -> onnx.ModelProto:
    torch.manual_seed(0)
    for one in module.parameters():
        nn.init.normal_(one, std=0.3)
    batch, tokens = Dim("batch", min=1, max=64), Dim("tokens", min=1, max=64)
    axes = tuple({0: batch, 1: tokens} for _ in (0, *more))
    program = export(module.eval(), (torch.randn(2, 6, HIDDEN), *more), dynamic_shapes=axes)
    made = normalised(exporter.to_onnx(program))
    exporter.name_axes(made)
    return made


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def arrays(model: onnx.ModelProto, batch: int, tokens: int, seed: int = 0):
    """Random inputs; of a mask, one sample has no token at all."""
    random = np.random.default_rng(seed)
    made = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [
            dim.dim_value or (batch if number == 0 else tokens)
            for number, dim in enumerate(kind.shape.dim)
        ]
        if kind.elem_type == TensorProto.BOOL:
            made[value.name] = random.random(shape) > 0.4
            made[value.name][0] = False
        else:
            made[value.name] = random.standard_normal(shape).astype(np.float32)
    return made


def assert_same(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    before, after = (OrtModel(one.SerializeToString()) for one in (model, other))
    for batch, tokens in SIZES:
        given = arrays(model, batch, tokens)
        found = difference(before.run(given), after.run(given))
        assert found.beyond(1e-5) is None, (batch, tokens, found)


MASK = torch.ones(2, 6, dtype=torch.bool)
WRITTEN = {
    "plain": (Attention(), ()),
    "scaled": (Attention(scale=0.3), ()),
    "causal": (Attention(causal=True), ()),
    "keys masked": (Keys(), (MASK,)),
    "rows masked": (Rows(), (MASK,)),
    "PyTorch's layer": (nn.TransformerEncoderLayer(HIDDEN, HEADS, 64, batch_first=True), ()),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_pytorchs_attention_is_fused_and_computes_the_same(name: str) -> None:
    module, more = WRITTEN[name]
    model = exported(module, *more)
    made, count = fused(model)
    assert count == 1
    assert kinds(made)[OPERATOR] == 1
    assert "Softmax" not in kinds(made)
    assert_same(model, made)


@pytest.mark.parametrize("layers", [1, 3])
def test_every_layer_is_fused_and_the_mask_is_made_once(layers: int) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Keys() for _ in range(layers))

        def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x, m)
            return x

    model = exported(Network(), MASK)
    made, count = fused(model)
    assert count == layers
    assert kinds(made)["Where"] == 1
    assert_same(model, made)


def test_heads_are_neither_split_nor_joined_by_copies() -> None:
    made, _ = fused(exported(Attention()))
    assert kinds(made) == {"MatMul": 2, "Add": 2, "Split": 1, OPERATOR: 1}


def written(
    *,
    kind: int = TensorProto.FLOAT,
    lowest: float | None = None,
    guard: bool = False,
    bias: np.ndarray | None = None,
    key_batch: str = "batch",
    axis: int = -1,
    scale: float | None = 0.5,
    opset: int = 20,
    mask_heads: int = 1,
    shares: bool = False,
) -> onnx.ModelProto:
    """Attention over q, k, v as inputs with heads, with a mask of rows and keys."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensors = {}

    def keep(name: str, value: object) -> str:
        tensors[name] = numpy_helper.from_array(np.asarray(value).astype(dtype), name)
        return name

    sizes = ["batch", HEADS, "tokens", HEAD]
    inputs = [
        helper.make_tensor_value_info(name, kind, [batch, *sizes[1:]])
        for name, batch in (("q", "batch"), ("k", key_batch), ("v", "batch"))
    ]
    nodes = [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2])]
    nodes.append(helper.make_node("MatMul", ["q", "kt"], ["s"]))
    last = "s"
    if scale is not None:
        nodes.append(helper.make_node("Mul", [last, keep("scale", scale)], ["scaled"]))
        last = "scaled"
    if lowest is not None:
        mask = ["batch", mask_heads, "tokens", "tokens"]
        inputs.append(helper.make_tensor_value_info("m", TensorProto.BOOL, mask))
        chosen = ["m", keep("zero", 0.0), keep("lowest", lowest)]
        nodes.append(helper.make_node("Where", chosen, ["bias"]))
        nodes.append(helper.make_node("Add", [last, "bias"], ["added"]))
        last = "added"
    if bias is not None:
        nodes.append(helper.make_node("Add", [keep("table", bias), last], ["added"]))
        last = "added"
    nodes.append(helper.make_node("Softmax", [last], ["p"], axis=axis))
    last = "p"
    if guard:
        nodes.append(helper.make_node("IsNaN", ["p"], ["broken"]))
        nodes.append(helper.make_node("Where", ["broken", keep("none", 0.0), "p"], ["safe"]))
        last = "safe"
    nodes.append(helper.make_node("MatMul", [last, "v"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", kind, sizes)]
    if shares:
        shape = ["batch", HEADS, "tokens", "tokens"]
        outputs.append(helper.make_tensor_value_info("p", kind, shape))
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def at_tokens(model: onnx.ModelProto, batch: int, tokens: int):
    given = {}
    random = np.random.default_rng(1)
    for value in model.graph.input:
        sizes = {"batch": batch, "tokens": tokens, "1": 1}
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in dims]
        if value.name == "m":
            mask = random.random(shape) > 0.5
            mask[0, :, 0], mask[-1] = False, False
            given["m"] = mask
        else:
            given[value.name] = (3 * random.standard_normal(shape)).astype(np.float32)
    return given


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fp32, constants as they are."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in [*made.graph.input, *made.graph.output]:
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in made.graph.initializer:
        if tensor.data_type in HALVES:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in made.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
    return made


HALVES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("lowest", ["-inf", "the type's lowest"])
def test_a_row_that_is_masked_throughout_gives_what_it_gave(kind, guard, lowest) -> None:
    """In fp32 arithmetic, in which -6e4 leaves of a score what fp16 doesn't."""
    lows = {TensorProto.FLOAT16: -65504.0}
    low = -np.inf if lowest == "-inf" else lows.get(kind, -3.3895e38)
    model = written(kind=kind, lowest=low, guard=guard)
    made, count = fused(model)
    assert count == 1
    model, made = widened(model), widened(made)
    if kind == TensorProto.FLOAT16 and lowest != "-inf":
        # As fp16 rounds it: the sum of a score and this is this.
        low = next(one for one in model.graph.initializer if one.name == "lowest")
        low.CopyFrom(numpy_helper.from_array(np.float32(-1e30), "lowest"))
    before, after = (OrtModel(one.SerializeToString()) for one in (model, made))
    for tokens in (1, 6):
        given = at_tokens(model, 3, tokens)
        expected, found = before.run(given), after.run(given)
        assert np.isnan(expected["y"]).any() == (lowest == "-inf" and not guard)
        assert difference(expected, found).beyond(1e-5) is None


@pytest.mark.parametrize("scale", [None, 0.1, 2.0])
@pytest.mark.parametrize("bias", [None, np.linspace(-3, 3, HEADS).reshape(HEADS, 1, 1)])
def test_scales_and_constant_biases_are_kept(scale, bias) -> None:
    if bias is not None:
        model = written(scale=scale, bias=np.broadcast_to(bias, (HEADS, 6, 6)))
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[2].dim_value = 6
    else:
        model = written(scale=scale)
    made, count = fused(model)
    assert count == 1
    before, after = (OrtModel(one.SerializeToString()) for one in (model, made))
    given = at_tokens(model, 2, 6)
    assert difference(before.run(given), after.run(given)).beyond(1e-5) is None


def test_shares_that_are_an_output_stay_one() -> None:
    model = written(shares=True)
    made, count = fused(model)
    assert count == 1
    before, after = (OrtModel(one.SerializeToString()) for one in (model, made))
    given = at_tokens(model, 2, 6)
    assert difference(before.run(given), after.run(given)).beyond(1e-5) is None


@pytest.mark.parametrize(
    "more",
    [
        {"axis": 2},
        {"key_batch": "1"},
        {"scale": 0.0},
        {"scale": -1.0},
        {"opset": 17},
        {"lowest": -100.0},
        {"lowest": -3e4, "kind": TensorProto.FLOAT16},
        {"lowest": -np.inf, "mask_heads": HEADS},
        {"bias": np.full((6, 6), -np.inf)},
        {"kind": TensorProto.DOUBLE},
    ],
    ids=str,
)
def test_what_cannot_be_shown_to_be_equal_stays(more) -> None:
    model = written(**more)
    if "bias" in more:
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[2].dim_value = 6
    made, count = fused(model)
    assert (made is model, count) == (True, 0)


def test_a_mask_given_as_numbers_stays() -> None:
    class Biased(Attention):
        def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            return super().forward(x, m[:, None, None, :])

    assert fused(exported(Biased(), torch.zeros(2, 6)))[1] == 0


def test_sizes_are_found_through_a_reshape_beside_dynamic_axes() -> None:
    shape = numpy_helper.from_array(np.array([0, 0, -1, 8]), "shape")
    flat = numpy_helper.from_array(np.array([-1, 32, 8]), "flat")
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["heads"]),
            helper.make_node("Reshape", ["x", "flat"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [shape, flat],
    )
    sizes = sizes_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert sizes["heads"] == ["batch", "tokens", 4, 8]
    assert sizes["y"][0] not in ("batch", "tokens")  # it is a product of both
