"""TensorRT's inspector, by records in the format it prints.

Written for these tests after what TensorRT's engine explorer and its developer guide show of TensorRT 8.6
(convolutions) and 10 (attention): no engine can be built here to print them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.reports.layers import Layer
from workers.backends.trt.inspector import layers_of, operators_of

RECORDS = Path(__file__).parent.parent / "data" / "inspector"


def layers(name: str) -> tuple[Layer, ...]:
    return layers_of((RECORDS / f"{name}.json").read_text())


def types(layer: Layer) -> tuple[list[str | None], list[str | None]]:
    return [one.type for one in layer.inputs], [one.type for one in layer.outputs]


def test_each_tensor_has_the_type_that_its_format_names() -> None:
    reformat, stem, body, pool = layers("convolutions")
    assert types(reformat) == (["float"], ["half"])
    assert types(stem) == (["half"], ["half"])
    assert types(body) == (["int8"], ["int8"])
    assert types(pool) == (["int8"], ["float"])
    assert stem.inputs[0].format == "Channel major FP16 format where channel % 4 == 0"
    assert stem.outputs[0].shape == [8, 16, 32, 32]


def test_a_fused_layer_names_its_kernel_and_its_onnx_nodes() -> None:
    reformat, stem, body, pool = layers("convolutions")
    assert stem.type == "CaskConvolution"
    assert stem.kernel is not None
    assert stem.kernel.startswith("sm80_xmma_fprop_implicit_gemm_indexed_f16f16")
    assert stem.operators == ["/stem/Conv", "/stem/Relu"]
    assert body.operators == ["/body/weight_q[0]", "/body/Conv"]
    assert pool.operators == ["/body/MaxPool"]
    assert (reformat.kernel, reformat.operators) == (None, [])


def test_kernels_that_the_compiler_generates_are_read_like_others() -> None:
    cast, product, attention = layers("attention")
    assert types(cast) == (["half"], ["fp8"])
    assert types(product) == (["fp8", "fp8"], ["bf16"])
    assert types(attention) == (["bf16"], ["float"])
    assert product.operators == ["/attn/q/MatMul", "/attn/k/MatMul", "/attn/v/MatMul"]
    assert attention.operators == ["/attn/MatMul", "/attn/Softmax", "/attn/MatMul_1"]


def test_an_engine_built_without_details_has_names_alone() -> None:
    reformat, stem = layers("names-only")
    assert stem.name == "/stem/Conv + /stem/Relu"
    assert (stem.type, stem.inputs, stem.kernel, stem.operators) == ("?", [], None, [])
    assert reformat.name.startswith("Reformatting CopyNode")


@pytest.mark.parametrize("metadata", ["", "[Something: else]", "no brackets"])
def test_metadata_without_onnx_nodes_names_none(metadata: str) -> None:
    assert operators_of(metadata) == []
