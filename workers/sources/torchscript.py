"""Loads TorchScript on the CPU, runs it by input name, and exports it to ONNX.

``workers.programs.script`` checks everything in it before any of it runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from farm.errors import FixedInputRefused, InvalidModel, ProfileMismatch
from farm.specs.shapes import FixedInputs, Profile, TensorSpec
from workers.graphs.check import brief
from workers.inputs.profiles import shapes_at
from workers.inputs.samples import Arrays, random_arrays
from workers.programs import script
from workers.programs.eager import tensors_of
from workers.programs.guard import checked
from workers.programs.program_interface import numbered_outputs

_HINT = "export it instead: torch.export.save(torch.export.export(model, args), 'model.pt2')"
_REWRITE = f"rewrite it with standard PyTorch operators and save it with torch.jit.save, or {_HINT}"
_TRACE = (
    "trace it, since a traced file keeps its example inputs: "
    "torch.jit.trace(model, example).save('model.pt')"
)
#: Inputs with these names are taken for indices or masks if the file doesn't say.
_INTEGERS = re.compile(r".*(ids|mask|tokens)", re.IGNORECASE)


class TorchScriptSource:
    """Runs TorchScript on numpy arrays, by input name.

    Parameters:
        fixed: inputs with a constant value; they needn't be tensors.

    Raises:
        InvalidModel: the file isn't TorchScript, or contains something that the farm doesn't run.
        FixedInputRefused
    """

    def __init__(self, path: Path, fixed: FixedInputs | None = None) -> None:
        try:
            loaded = script.load(path)
        except script.Refused as err:
            raise InvalidModel(
                f"the farm doesn't run this TorchScript: {err}", hint=_REWRITE
            ) from err
        except script.Unreadable as err:
            raise InvalidModel(
                f"torch {torch.__version__} can't load this TorchScript: {err}", hint=_HINT
            ) from err
        self.module = loaded.module.eval()
        self._operators = loaded.operators
        self._is_known_to_repeat = False
        self._fixed = self._values(fixed or {})
        self.input_names = [a.name for a in self._arguments() if a.name not in self._fixed]

    def _arguments(self) -> list[Any]:
        return list(self.module.forward.schema.arguments[1:])

    def _values(self, fixed: FixedInputs) -> dict[str, Any]:
        """The values of the arguments that aren't inputs: fixed ones and defaults."""
        arguments = {a.name: a for a in self._arguments()}
        for name in fixed.keys() - arguments.keys():
            raise FixedInputRefused(
                f"the model has no input {name!r} to fix",
                hint=f"its inputs are {', '.join(arguments)}",
            )
        values: dict[str, Any] = {}
        for name, argument in arguments.items():
            is_tensor = str(argument.type) == "Tensor"
            if name in fixed:
                values[name] = torch.tensor(fixed[name]) if is_tensor else fixed[name]
            elif not is_tensor and argument.has_default_value():
                values[name] = argument.default_value
        others = [n for n, a in arguments.items() if n not in values and str(a.type) != "Tensor"]
        if others or len(values) == len(arguments):
            raise InvalidModel(
                f"its forward takes {', '.join(others) or 'nothing'} instead of tensors",
                hint=f"fix it to one value: --fix {others[0]}=VALUE"
                if others
                else "wrap it in a module whose forward takes tensors, and save that",
            )
        return values

    def _call(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """All arguments of the module."""
        given = dict(zip(self.input_names, tensors, strict=True)) | self._fixed
        return tuple(given[argument.name] for argument in self._arguments())

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Return the outputs for one batch, by their names in the ONNX graph.

        Raises:
            InvalidModel: it can't run at these shapes, or returns something other than tensors.
        """
        found = self._leaves(self.tensors(arrays))
        if not self._is_known_to_repeat:
            self._check_repeats(found, self._leaves(self.tensors(arrays)))
        return {
            name: tensor.detach().numpy()
            for name, tensor in zip(numbered_outputs(len(found)), found, strict=True)
        }

    def _check_repeats(self, first: Sequence[torch.Tensor], again: Sequence[torch.Tensor]) -> None:
        """Refuse a module whose outputs change when it is called again with the same inputs.

        Raises:
            InvalidModel
        """
        if not all(map(_is_repeated, first, again)):
            raise InvalidModel(
                "the module returns different outputs when called again with the same inputs: it keeps state "
                "between calls, or is random",
                hint="pass its state as inputs and outputs of forward, and put it in eval mode",
            )
        self._is_known_to_repeat = True

    def tensors(self, arrays: Mapping[str, NDArray[np.generic]]) -> tuple[torch.Tensor, ...]:
        """The module's arguments."""
        return tuple(tensors_of(arrays, self.input_names))

    def _leaves(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        try:
            # Not inference_mode: tensors the module keeps from this call couldn't be traced by its export.
            with torch.no_grad(), checked(self._operators):
                result = self.module(*self._call(tensors))
        except Exception as err:  # its code may raise anything
            shapes = {n: list(t.shape) for n, t in zip(self.input_names, tensors, strict=True)}
            raise InvalidModel(
                f"the module can't run with input shapes {shapes}: {brief(err)}",
                hint="pass profiles with the shapes it accepts, min = opt = max for a fixed one",
            ) from err
        leaves = pytree.tree_leaves(result)
        if isinstance(result, dict) or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise InvalidModel(
                "its forward returns something other than tensors, or a dict",
                hint="wrap it in a module that returns a tensor or a tuple of tensors",
            )
        return leaves

    def _bound(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The module with its fixed arguments bound. The inner call isn't traced: it is a script."""
        if not self._fixed:
            return self.module
        with warnings.catch_warnings(), checked(self._operators):
            warnings.simplefilter("ignore")
            trace: Any = torch.jit.trace
            return trace(_Bound(self), tuple(tensors), check_trace=False)

    def input_specs(self, profiles: Sequence[Profile]) -> tuple[TensorSpec, ...]:
        """Its inputs, from the profiles or else from the example it was traced with.

        An example's first axis is the batch and dynamic; its other axes are static.

        Raises:
            ProfileMismatch: neither gives an input's shape.
        """
        traced = {
            name: (value.type().sizes(), value.type().dtype())
            for name, value in zip(
                [argument.name for argument in self._arguments()],
                list(self.module.graph.inputs())[1:],
                strict=True,
            )
            if name in self.input_names
        }
        batch = next((sizes[0] for sizes, _ in traced.values() if sizes), None)
        return tuple(
            TensorSpec(
                name=name,
                dtype=str(dtype).removeprefix("torch.") if dtype else _likely_dtype(name),
                shape=_shape(name, sizes, batch, [p[name] for p in profiles if name in p]),
            )
            for name, (sizes, dtype) in traced.items()
        )

    def to_onnx(
        self, specs: Sequence[TensorSpec], profile: Profile, file: Path, *, opset: int
    ) -> onnx.ModelProto:
        """Export it at the profile's opt shapes, with the dynamic axes of ``specs``.

        Raises:
            InvalidModel: has PyTorch's reason.
        """
        tensors = self.tensors(
            random_arrays(specs, shapes_at(profile, "opt"), seed=0, profile=profile)
        )
        found = self._leaves(tensors)
        self._check_repeats(found, self._leaves(tensors))
        outputs = numbered_outputs(len(found))
        axes = {
            spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
            for spec in specs
        }
        try:
            with warnings.catch_warnings(), checked(self._operators):
                warnings.simplefilter("ignore")
                # The exporter based on torch.export doesn't support TorchScript's control flow.
                torch.onnx.export(
                    self._bound(tensors),
                    tensors,
                    str(file),
                    dynamo=False,
                    opset_version=opset,
                    input_names=list(self.input_names),
                    output_names=outputs,
                    dynamic_axes=axes,
                )
        except Exception as err:  # bare RuntimeErrors, besides those of torch.onnx.errors
            raise InvalidModel(
                f"PyTorch can't export this TorchScript to ONNX: {_reason(err)}", hint=_HINT
            ) from err
        return onnx.load(str(file))


class _Bound(torch.nn.Module):
    """A TorchScript module with some of its arguments bound."""

    def __init__(self, source: TorchScriptSource) -> None:
        super().__init__()
        self.module = source.module
        self._arguments = source._call

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.module(*self._arguments(tensors))


def _likely_dtype(name: str) -> str:
    return "int64" if _INTEGERS.fullmatch(name) else "float32"


def _shape(
    name: str, traced: Sequence[int] | None, batch: int | None, asked: Sequence[Any]
) -> tuple[int | str, ...]:
    if asked:
        first = asked[0]
        sizes = [{s for r in asked for s in (r.min[a], r.max[a])} for a in range(len(first.opt))]
        return tuple(
            first.opt[axis] if len(found) == 1 else _axis(name, axis)
            for axis, found in enumerate(sizes)
        )
    if traced is None:
        raise ProfileMismatch(
            f"neither the file nor a profile gives the shape of input {name!r}",
            hint=f"pass a profile with min, opt and max shapes for {name!r}, or {_TRACE}",
        )
    is_batched = bool(traced) and traced[0] == batch
    return (_axis(name, 0), *traced[1:]) if is_batched else tuple(traced)


def _is_repeated(first: torch.Tensor, again: torch.Tensor) -> bool:
    if first.shape != again.shape or not first.is_floating_point():
        return torch.equal(first, again)
    return torch.allclose(first, again, rtol=1e-3, atol=1e-5, equal_nan=True)


def _axis(name: str, axis: int) -> str:
    return "batch" if axis == 0 else f"{name}_{axis}"


def _reason(err: Exception) -> str:
    """The reason, without the graph that the exporter prints before it."""
    return (
        brief(err).rpartition("Torch IR graph at exception")[0] or str(err).splitlines()[-1][:300]
    )
