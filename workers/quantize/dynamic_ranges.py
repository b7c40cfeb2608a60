"""INT8 without calibration data: weights are quantised ahead of time, activations at run time.

ONNX Runtime finds the range of each activation as it runs; its CPU kernels do so inside the product.
Only matrix products: an integer convolution whose ranges aren't known in advance is seven times as slow
as an fp32 one (ResNet-50, ONNX Runtime 1.31, a CPU with VNNI).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from workers.quantize.saturation import exact_graph

#: A Gemm is split into its product and its sum.
PRODUCTS = ("MatMul",)


def quantize_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph to ``path``, with int8 weights and a scale per column in products with weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _give_each_gemm_its_weights(made.graph)
    # The quantiser transposes a Gemm's weights, and then rejects their declared shape.
    del made.graph.value_info[:]
    add_pre_process_metadata(made)  # otherwise it gives advice that users can't follow
    quantize_dynamic(
        made,
        path,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        # To 64, which saturates in no kernel: see workers.quantize.integer_products.
        reduce_range=True,
    )
    onnx.save(exact_graph(onnx.load(str(path))), str(path))


def _give_each_gemm_its_weights(graph: onnx.GraphProto) -> None:
    """Copy shared weights: the quantiser transposes them in place, once per Gemm that uses them."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in tensors and uses[name] > 1:
            own = graph.initializer.add()
            own.CopyFrom(tensors[name])
            own.name = f"{name}__of__{node.output[0]}"
            node.input[1] = own.name
