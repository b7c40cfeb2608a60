"""PyTorch on the GPU, eager and compiled: the baseline for an engine's speed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from farm.specs.precision import Precision
from workers.clocks.cuda import Bind, Tensors
from workers.programs.eager import input_names, named_tensors, output_names

#: The autocast type to compare with an engine of this precision; fp32 needs none.
_HALF = {Precision.FP32: None, Precision.BF16: torch.bfloat16}


class PyTorchOnGpu:
    """A program on the current GPU."""

    def __init__(self, program: ExportedProgram) -> None:
        # With the index, since device checks inside a program compare it.
        moved = move_to_device_pass(program, "cuda:0")
        self._names = input_names(moved), output_names(moved)
        self._in_spec = moved.call_spec.in_spec
        self._module = moved.module()

    def eager(self, dtype: torch.dtype | None) -> Bind:
        """Inferences of the program as it is, or with autocast to a type."""
        module = self._typed(dtype)
        return lambda inputs: _Bound(module, self._names, self._in_spec, inputs, dtype)

    def _typed(self, dtype: torch.dtype | None) -> torch.fx.GraphModule:
        """The program with weights of that type: autocast alone would cast them again in every run."""
        return self._module if dtype is None else deepcopy(self._module).to(dtype)

    def compiled(self, dtype: torch.dtype | None) -> Bind:
        """Inferences compiled by ``torch.compile`` for exactly these shapes."""
        # Compile in this process: a job leaves no others behind.
        torch._inductor.config.compile_threads = 1
        torch._dynamo.reset()
        module = torch.compile(self._typed(dtype), dynamic=False)
        return lambda inputs: _Bound(module, self._names, self._in_spec, inputs, dtype)


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The type PyTorch would compute in for an engine of this precision."""
    return _HALF.get(precision, torch.float16)


class _Bound:
    def __init__(
        self,
        module: Callable[..., Any],
        names: tuple[list[str], list[str]],
        in_spec: Any,
        inputs: Tensors,
        dtype: torch.dtype | None,
    ) -> None:
        input_order, self._outputs = names
        self._module = module
        self._dtype = dtype
        self._args, self._kwargs = pytree.tree_unflatten(
            [inputs[name] for name in input_order], in_spec
        )

    def enqueue(self) -> Tensors:
        with torch.inference_mode(), self._autocast():
            return named_tensors(self._module(*self._args, **self._kwargs), self._outputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", self._dtype) if self._dtype else nullcontext()
