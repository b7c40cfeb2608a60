"""Builds and runs TorchScript engines: programs compiled by ``torch.jit``, loadable without Python.

Scripted rather than traced: where the program computes with a dynamic size, a trace keeps its example's,
and would only run at that batch size.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from farm.errors import EngineBuildFailed, InvalidModel
from farm.reports.layers import Layer
from workers.graphs.check import brief
from workers.inputs.samples import Arrays
from workers.programs import script
from workers.programs.eager import input_names, named_tensors, output_names, tensors_of
from workers.programs.guard import checked
from workers.programs.program_layers import layers_of, made_by

VERSION = torch.__version__
#: Extra file in the archive: the names of the inputs and outputs, in call order.
NAMES = "names.json"
#: Arguments of operators that create tensors. TorchScript can't express them, and there is one device.
_PLACES = ("device", "pin_memory")


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """A built engine."""

    build_s: float
    layers: Sequence[Layer]


def build_engine(program: ExportedProgram, engine: Path) -> Scripted:
    """Write a program as TorchScript: positional inputs, one output or a tuple.

    Raises:
        EngineBuildFailed: names what TorchScript can't express.
    """
    start = time.monotonic()
    graph = _flat_graph(program)
    names = {"inputs": input_names(program), "outputs": output_names(program)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the deprecation, which the docs mention
            module = torch.jit.freeze(torch.jit.script(graph.eval()))
            torch.jit.save(module, str(engine), _extra_files={NAMES: json.dumps(names)})
    except Exception as err:  # the compiler raises its own error types and bare RuntimeErrors
        raise EngineBuildFailed(
            f"torch {VERSION} can't compile this program to TorchScript: {brief(err)}",
            hint="use onnxruntime:cpu, or rewrite that operator with others",
        ) from err
    return Scripted(build_s=time.monotonic() - start, layers=layers_of(program))


class TorchScriptModel:
    """A TorchScript engine, on the CPU. The process that built it had read an untrusted program, so the
    engine is checked and run as untrusted too.

    Raises:
        EngineBuildFailed: it contains something that the farm doesn't run.
    """

    def __init__(self, path: Path) -> None:
        try:
            loaded = script.load(path, (NAMES,))
            names = json.loads(loaded.extra[NAMES])
        except (script.Refused, script.Unreadable, ValueError) as err:
            raise EngineBuildFailed(
                f"the farm doesn't run this engine: {err}",
                hint="use onnxruntime:cpu, or rewrite that part of the model with standard PyTorch operators",
            ) from err
        self._module = loaded.module
        self._operators = loaded.operators
        self.input_names: list[str] = names["inputs"]
        self.output_names: list[str] = names["outputs"]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs for one batch, by name.

        Raises:
            InvalidModel: if it can't run at the shapes of this batch.
        """
        try:
            with torch.inference_mode(), checked(self._operators):
                made = self._module(*tensors_of(arrays, self.input_names))
        except RuntimeError as err:
            shapes = {name: list(np.shape(array)) for name, array in arrays.items()}
            # TorchScript's traceback comes first, the reason last; a refused operator has none.
            reason = str(err).strip().splitlines()[-1].removeprefix("RuntimeError:").strip()
            reason = reason[:400] or brief(err)
            raise InvalidModel(
                f"the engine can't run with input shapes {shapes}: {reason}"
            ) from err
        return {n: tensor.numpy() for n, tensor in named_tensors(made, self.output_names).items()}


def _flat_graph(program: ExportedProgram) -> fx.GraphModule:
    """The program's graph in terms of TorchScript: operators by name, positional inputs."""
    module = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(CodeGen())
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            node.target = node.target.overloadpacket
            node.kwargs = {name: of for name, of in node.kwargs.items() if name not in _PLACES}
        if node.op == "output":
            leaves = [of for of in pytree.tree_leaves(node.args) if made_by(of)]
            node.args = (leaves[0] if len(leaves) == 1 else tuple(leaves),)
    return fx.GraphModule(module, graph)
