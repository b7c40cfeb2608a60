"""Runs a ``torch.export`` program eagerly: the reference for every check."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from farm.errors import InvalidModel
from farm.specs.batch_axes import batch_symbol
from farm.specs.shapes import TensorSpec
from workers.inputs.batch import Arrays
from workers.inputs.profiles import AxisRange
from workers.inputs.samples import BF16
from workers.programs.guard import checked
from workers.programs.program_interface import numbered_outputs
from workers.programs.written import written

#: A dynamic size as torch.export names it, on its own or in an expression: ``s40``, ``2*s40``.
SYMBOL = re.compile(r"\bs\d+\b")
#: A bound this large means unbounded: torch serialises infinity like this.
_UNBOUNDED = 2**31


class EagerModel:
    """Runs a program on numpy arrays, by input name. Each run begins with what was saved, as an engine's
    does, even if the program writes to its buffers."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.input_names = input_names(program)
        self.output_names = output_names(program)
        self.input_specs, self.output_specs = specs(program)
        self.axis_ranges = axis_ranges(program)
        #: The author's outputs that aren't tensors: name → what it is.
        self.left_out: dict[str, str] = program.graph_module.meta.get("left_out", {})
        self._in_spec = program.call_spec.in_spec
        self._operators = called(program)
        try:
            self._module = program.module()
        except Exception as err:  # compiling a malformed graph may raise anything
            raise InvalidModel(
                f"the program's graph can't be compiled: {_first_line(err)}",
                hint="export it again: torch.export.save(torch.export.export(model, args), 'model.pt2')",
            ) from err
        nodes = list(written(self._module.graph))
        self._inputs_written = {node.name for node in nodes if node.op == "placeholder"}
        held = [
            attrgetter(str(node.target))(self._module) for node in nodes if node.op == "get_attr"
        ]
        self._saved = [(tensor, tensor.detach().clone()) for tensor in held]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Return the outputs for one batch, by their names in the ONNX graph.

        Raises:
            InvalidModel: the program can't run at these shapes or on these values.
        """
        given = [
            one.clone() if name in self._inputs_written else one
            for name, one in zip(self.input_names, given_to(self.input_specs, arrays), strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(given, self._in_spec)
        try:
            with torch.inference_mode(), checked(self._operators):
                made = named_tensors(self._module(*args, **kwargs), self.output_names)
                if self._saved:  # outputs may be views of what is restored
                    made = {name: tensor.clone() for name, tensor in made.items()}
        except Exception as err:  # its operators may raise anything
            shapes = {name: list(arrays[name].shape) for name in self.input_names}
            raise InvalidModel(
                f"the program can't run with input shapes {shapes}: {_first_line(err)}",
                hint="pass profiles with the sizes it accepts, or export it with these axes dynamic",
            ) from err
        finally:
            self._restore()
        return {name: array_of(tensor) for name, tensor in made.items()}

    def _restore(self) -> None:
        with torch.no_grad():
            for tensor, saved in self._saved:
                tensor.copy_(saved)


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0][:400]


def called(program: ExportedProgram) -> frozenset[str]:
    """The ``aten`` operators a program calls, including in branches and loops: ``add.Tensor``."""
    modules = program.graph_module.modules()
    graphs = (module.graph for module in modules if isinstance(module, torch.fx.GraphModule))
    targets = (node.target for graph in graphs for node in graph.nodes)
    return frozenset(
        str(target).removeprefix("aten.")
        for target in targets
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    )


def tensors_of(
    arrays: Mapping[str, NDArray[np.generic]], names: Sequence[str]
) -> list[torch.Tensor]:
    """The named arrays as CPU tensors, in the order of the names."""
    # Arrays of a .npz may be read-only views, which torch warns about; nothing here writes to them.
    return [torch.from_numpy(np.require(arrays[name], requirements="W")) for name in names]


def given_to(
    inputs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[np.generic]]
) -> list[torch.Tensor]:
    """The arrays as what these inputs take, on the CPU, in their order."""
    tensors = tensors_of(arrays, [spec.name for spec in inputs])
    return [as_taken(one, spec) for one, spec in zip(tensors, inputs, strict=True)]


def as_taken(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The tensor of an array as the input takes it: bf16, which NumPy lacks, arrives as fp32."""
    return tensor.to(torch.bfloat16) if spec.dtype == BF16 else tensor


def array_of(tensor: torch.Tensor) -> NDArray[np.generic]:
    """A tensor as an array; bf16, which NumPy lacks, becomes fp32."""
    tensor = tensor.detach().cpu()
    array: NDArray[np.generic] = (
        tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return array


def named_tensors(result: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors in a module's result, by these names."""
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return dict(zip(names, tensors, strict=True))


def input_names(program: ExportedProgram) -> list[str]:
    """The program's inputs, in call order.

    Raises:
        InvalidModel: an input isn't a tensor.
    """
    names = program.graph_signature.user_inputs
    constants = [name for name in names if not isinstance(name, str)]
    if constants:
        raise InvalidModel(
            f"the program takes the constants {constants} as inputs",
            hint="bind them in a wrapper module, so that every input is a tensor",
        )
    return [str(name) for name in names]


def axis_ranges(program: ExportedProgram) -> dict[str, AxisRange]:
    """The ranges that the program declares for its inputs' dynamic axes, by their names in ``specs``.

    A minimum of 2 counts as 1: torch.export specialises on sizes 0 and 1.
    """
    values, names = _values(program), _axis_names(program)
    return {
        _renamed(size, names): _range(size)
        for name in input_names(program)
        for size in values[name].shape
        if isinstance(size, torch.SymInt)
    }


def _range(size: torch.SymInt) -> AxisRange:
    expression = size.node.expr
    bounds = size.node.shape_env.bound_sympy(expression)
    low = 1 if bounds.lower <= 2 else int(bounds.lower)
    high = None if bounds.upper >= _UNBOUNDED else int(bounds.upper)
    example = size.node.hint if size.node.has_hint() else low
    return AxisRange(low, max(low, min(example, high or example)), high)


def output_names(program: ExportedProgram) -> list[str]:
    """The outputs' names: the keys of the dict that ``plain_program`` makes; otherwise ``output`` or
    ``output_0`` …"""
    signature = program.graph_signature
    count = sum(isinstance(name, str) for name in signature.user_outputs)
    keys = _keys(program)
    if len(keys) == count == len(set(keys) - set(signature.user_inputs)):
        return keys
    return numbered_outputs(count)


def specs(program: ExportedProgram) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and the outputs. Dynamic axes have the names of the ONNX graph."""
    values, names = _values(program), _axis_names(program)
    made = [name for name in program.graph_signature.user_outputs if isinstance(name, str)]
    return (
        tuple(_spec(name, values[name], names) for name in input_names(program)),
        tuple(
            _spec(name, values[node], names)
            for name, node in zip(output_names(program), made, strict=True)
        ),
    )


def _values(program: ExportedProgram) -> dict[str, Any]:
    return {node.name: node.meta.get("val") for node in program.graph.nodes}


def _axis_names(program: ExportedProgram) -> dict[str, str]:
    """Dynamic axes' names, from the inputs: symbol → name."""
    values = _values(program)
    return axis_names({name: tuple(values[name].shape) for name in input_names(program)})


def axis_names(shapes: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Name the dynamic axes (symbol → name), since an archive keeps no names: the batch is ``batch`` at any
    position, and other axes are named after their input.

    Parameters:
        shapes: of the inputs; a dynamic size is a symbol or an expression of symbols.
    """
    raw = [
        TensorSpec(
            name=name,
            dtype="",
            shape=tuple(size if isinstance(size, int) else str(size) for size in shape),
        )
        for name, shape in shapes.items()
    ]
    batch = batch_symbol(raw)
    names: dict[str, str] = {}
    for spec in raw:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and SYMBOL.fullmatch(size):
                names.setdefault(size, "batch" if size == batch else f"{spec.name}_{axis}")
    return names


def _renamed(size: torch.SymInt, names: Mapping[str, str]) -> str:
    return SYMBOL.sub(lambda match: names.get(match[0], match[0]), str(size))


def _spec(name: str, tensor: torch.Tensor, names: Mapping[str, str]) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else _renamed(size, names) for size in tensor.shape)
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)


def _keys(program: ExportedProgram) -> list[str]:
    spec = program.call_spec.out_spec
    if spec is None or spec.type is not dict:
        return []
    return [key for key in spec.context if isinstance(key, str) and re.fullmatch(r"\w+", key)]
