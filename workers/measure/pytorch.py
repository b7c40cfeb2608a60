"""PyTorch on the GPU, eager and compiled: what an engine's speed is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from workers.backends.aotinductor.build import prepare_inductor
from workers.clocks.cuda import Bind, Tensors
from workers.programs.eager import as_taken, called, named_tensors, output_names, specs
from workers.programs.lowered import lowered

Inputs = Sequence[torch.Tensor]
"""A program's inputs in the order of its call."""

_IMAGE_AXES = 4
_MIXED = "mixed"
#: torch type → the farm's name of it.
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class PyTorch:
    """A program on the current GPU, as it is and in another type.

    Parameters:
        device: with the index, since device checks inside a program compare it.
    """

    def __init__(self, program: ExportedProgram, device: str = "cuda:0") -> None:
        moved = move_to_device_pass(program, device)
        self._program = moved
        self._inputs, self._outputs = specs(moved)[0], output_names(moved)
        self._in_spec = moved.call_spec.in_spec
        self._graphs: dict[tuple[Any, ...], torch.fx.GraphModule] = {}

    @property
    def precision(self) -> str:
        """What the program as it is computes in: the type of its weights, or ``mixed``."""
        tensors = [*self._program.state_dict.values(), *self._program.constants.values()]
        types = {one.dtype for one in tensors if isinstance(one, torch.Tensor)}
        given = {getattr(torch, spec.dtype) for spec in self._inputs}
        floats = {dtype for dtype in types or given if dtype.is_floating_point}
        [only] = floats if len(floats) == 1 else [None]
        return _MIXED if only is None else _NAMES.get(only, str(only).removeprefix("torch."))

    @property
    def has_images(self) -> bool:
        """Whether it convolves inputs with four axes, and so may be faster with them as NHWC."""
        convolves = any(name.startswith(("conv", "_conv")) for name in called(self._program))
        return convolves and any(len(spec.shape) == _IMAGE_AXES for spec in self._inputs)

    def eager(self) -> Bind:
        """Inferences of the program as it is."""
        module = self._program.module(check_guards=False)

        def run(*inputs: torch.Tensor) -> Any:
            args, kwargs = pytree.tree_unflatten(inputs, self._in_spec)
            return module(*args, **kwargs)

        return self._bound(lambda _: run)

    def typed(self, dtype: torch.dtype) -> Bind:
        """Eager inferences with weights and graph in that type."""
        return self._bound(partial(self._flat, dtype))

    def compiled(self, dtype: torch.dtype) -> Bind:
        """The same, compiled by ``torch.compile`` for exactly these shapes, with frozen weights."""
        prepare_inductor()
        torch._dynamo.reset()

        @cache
        def compiled(graph: torch.fx.GraphModule) -> Callable[..., Any]:
            made: Callable[..., Any] = torch.compile(
                graph, dynamic=False, options={"freezing": True}
            )
            return made

        return self._bound(lambda inputs: compiled(self._flat(dtype, inputs)))

    def _bound(self, prepared: Callable[[Inputs], Callable[..., Any]]) -> Bind:
        def bind(inputs: Tensors) -> _Bound:
            given = [as_taken(inputs[spec.name], spec) for spec in self._inputs]
            return _Bound(prepared(given), given, self._outputs)

        return bind

    def _flat(self, dtype: torch.dtype, inputs: Inputs) -> torch.fx.GraphModule:
        """The program in that type, as one graph of operators for inputs of these shapes and layouts."""
        key = dtype, *(one.stride() for one in inputs)
        if key not in self._graphs:
            module = lowered(self._program, dtype)
            exported = torch.export.export(module, tuple(inputs), strict=False)
            self._graphs[key] = exported.module(check_guards=False)
        return self._graphs[key]


class _Bound:
    def __init__(self, run: Callable[..., Any], inputs: Inputs, outputs: Sequence[str]) -> None:
        self._run = run
        self._inputs = inputs
        self._outputs = outputs

    def enqueue(self) -> Tensors:
        with torch.inference_mode():
            return named_tensors(self._run(*self._inputs), self._outputs)
