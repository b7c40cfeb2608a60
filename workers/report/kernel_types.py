"""Tells by a GPU kernel's name which type it multiplies in.

Libraries name their kernels by the types of the factors. Seen on compute capability 9.0 with CUDA 13: cuBLAS
(``nvjet``), cuDNN (``xmma``), CUTLASS, PyTorch's attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The first that matches; a kernel that none matches multiplies nothing.
_TYPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("fp8", re.compile(r"nvjet_\w*?_?(qq|rr|qr|rq)\w+_|e4m3|e5m2|float8|_f8")),
    ("int8", re.compile(r"gemm_s8|_s8_|i8i8|imma|[Ii]gemm|int8|nvjet_\w*?_?bb\w+_")),
    ("bf16", re.compile(r"nvjet_(sm\d+_)?t\w+_|bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"nvjet_(sm\d+_)?h\w+_|f16|half|hgemm|h\d{3,4}gemm", re.IGNORECASE)),
    ("tf32", re.compile(r"tf32|s1688gemm|nvjet_(sm\d+_)?s\w+_")),
    ("fp32", re.compile(r"sgemm|f32f32|simt|ffma|float")),
)
#: cuDNN names its attention f16 in either type of 16 bits.
_SIXTEEN_BITS = re.compile(r"cudnn_generated\w*sdpa\w*_f16_")
#: Kernels that multiply matrices or convolve, in any library.
_PRODUCTS = re.compile(
    r"nvjet|gemm|gemv|xmma|fprop|conv|implicit|flash_fwd|fmha|attention|triton_\w*(mm|conv|flex)",
    re.IGNORECASE,
)
#: Names that say so and don't: layouts, copies, sums of parts, and Triton's kernels that are no templates.
_OTHERS = re.compile(
    r"nchwToNhwc|nhwcToNchw|Padding|Memcpy|Memset|splitKreduce|^triton_(poi|red|per|for)_",
    re.IGNORECASE,
)


def type_of(name: str, half: str = "fp16") -> str | None:
    """The type a kernel multiplies in; None if it multiplies nothing, ``other`` if its name doesn't say.

    Parameters:
        half: the graph's type of 16 bits, fp16 or bf16.
    """
    if _OTHERS.search(name) or not _PRODUCTS.search(name):
        return None
    if _SIXTEEN_BITS.search(name):
        return half
    return next((kind for kind, known in _TYPES if known.search(name)), "other")


def shares(kernels: Mapping[str, float], half: str = "fp16") -> Mapping[str, float]:
    """The share of the products' time that ran in each type; empty if nothing multiplied.

    Parameters:
        kernels: name → time.
        half: the graph's type of 16 bits, fp16 or bf16.
    """
    spent: dict[str, float] = {}
    for name, time in kernels.items():
        kind = type_of(name, half)
        if kind is not None:
            spent[kind] = spent.get(kind, 0.0) + time
    total = sum(spent.values())
    return {kind: round(one / total, 4) for kind, one in spent.items()} if total else {}
