"""Imports what the stages need, once, in the fork server.

Importing doesn't initialise CUDA and runs no tensor operation: threads that PyTorch or ONNX Runtime
started before a fork would be missing in the child, which would wait for them forever.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module

from farm.stages import JobKind

#: How often an idle OpenMP thread of PyTorch polls for work before it sleeps; libgomp reads this once,
#: when loaded. By default it spins for so long that, on a busy machine, an operation waits 100 ms for a
#: thread that has no core; with this value it is as fast on an idle one.
_SPINS = "10000"

_STAGES = tuple(f"workers.stages.{kind}" for kind in JobKind)
#: Modules that a first export, cast or build would import late. A missing one only costs its job time.
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
# Otherwise ModelOpt fills the jobs' logs with progress bars.
os.environ.setdefault("TQDM_DISABLE", "1")
# ModelOpt would import CuPy if installed, and that initialises CUDA, which crashes jobs forked from here.
# Nothing that ModelOpt does here needs it.
sys.modules.setdefault("cupy", None)  # type: ignore[arg-type]
# Nothing of what is imported is garbage: looking for it takes a quarter of the time, and would again in
# every job that collects garbage.
gc.disable()
for _name in _STAGES:
    import_module(_name)
for _name in _LATE:
    with suppress(ImportError):
        import_module(_name)
import_module("workers.backends.trt.library").preload()
gc.freeze()
gc.enable()
