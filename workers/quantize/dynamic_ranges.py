"""INT8 without calibration data: weights are integers, activations become them as they come.

ONNX Runtime finds the range of each activation while it runs, which its kernels for CPUs do in the
product itself. Only matrix products: a convolution of integers whose ranges aren't known before is seven
times as slow as one in fp32 (ResNet-50, ONNX Runtime 1.31, a CPU with VNNI).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from workers.quantize.saturation import exact_graph

#: A Gemm is taken as the product and the sum that it is.
PRODUCTS = ("MatMul",)


def quantize_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph to ``path`` with an int8 weight, a scale a column, in each product that has one."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _give_each_gemm_its_weights(made.graph)
    # The quantiser turns the weights of a Gemm around, and then finds that they had another shape.
    del made.graph.value_info[:]
    add_pre_process_metadata(made)  # else it advises people who can't follow
    quantize_dynamic(
        made,
        path,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        # To 64, which no kernel saturates with: see workers.quantize.integer_products.
        reduce_range=True,
    )
    onnx.save(exact_graph(onnx.load(str(path))), str(path))


def _give_each_gemm_its_weights(graph: onnx.GraphProto) -> None:
    """The quantiser turns weights around in place, and so once for each Gemm that takes them."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in tensors and uses[name] > 1:
            own = graph.initializer.add()
            own.CopyFrom(tensors[name])
            own.name = f"{name}__of__{node.output[0]}"
            node.input[1] = own.name
