"""Imports what the stages need, once, in the parent that jobs are forked from.

Importing starts no CUDA and runs no tensor operation: threads that PyTorch or ONNX Runtime started
before a fork would be missing in the child, which would wait for them for ever.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from workers.backends import trt
from workers.stages import build, calibrate, cast, export, measure

__all__ = ["build", "calibrate", "cast", "export", "measure"]

#: What a first export, cast or build would import late. A missing one only costs its job the time.
_LATE = (
    "onnxscript.function_libs.torch_lib.ops",
    "onnxscript.rewriter.onnx_fusions",
    "polygraphy.backend.onnx",
    "polygraphy.backend.onnxrt",
    "polygraphy.comparator",
    "safetensors.numpy",
    "torch._functorch.aot_autograd",
    "torch.export._trace",
)

for _name in _LATE:
    with suppress(ImportError):
        import_module(_name)
trt.preload()
