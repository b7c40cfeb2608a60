"""Imports what the stages need, once, in the parent that jobs are forked from.

Importing starts no CUDA and runs no tensor operation: threads that PyTorch or ONNX Runtime started
before a fork would be missing in the child, which would wait for them for ever.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module

from farm.stages import JobKind

#: How often an idle OpenMP thread of PyTorch looks for work before it sleeps; libgomp reads it
#: once, when it is loaded. By default it looks for so long that, on a machine with other work to
#: do, an operation waits 100 ms for a thread that has no core; with this it is as fast when alone.
_SPINS = "10000"

_STAGES = tuple(f"workers.stages.{kind}" for kind in JobKind)
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

os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
# ModelOpt would fill the jobs' logs with progress bars.
os.environ.setdefault("TQDM_DISABLE", "1")
# ModelOpt would import CuPy where there is one, and that starts CUDA: jobs forked from here would die
# of it. What ModelOpt does here needs none.
sys.modules.setdefault("cupy", None)  # type: ignore[arg-type]
for _name in _STAGES:
    import_module(_name)
for _name in _LATE:
    with suppress(ImportError):
        import_module(_name)
import_module("workers.backends.trt.library").preload()
