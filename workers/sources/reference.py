"""Runs a source: the reference that its engines are compared with."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
from torch.export import ExportedProgram

from farm.errors import InvalidModel
from farm.specs.shapes import FixedInputs
from farm.specs.source import SourceFormat
from farm.stages import BuildParams, ExportParams, MeasureParams, PruneParams
from workers.backends.ort.cpu import Optimisation, OrtModel
from workers.graphs import files, fixing, interface
from workers.graphs.fixing import Fixed
from workers.graphs.floats import has_type
from workers.graphs.intake import inlined
from workers.graphs.normal import is_normal, normalised
from workers.graphs.rounding import rounded_model
from workers.inputs.samples import Runnable
from workers.programs.eager import EagerModel, specs
from workers.programs.load import load_program
from workers.programs.program_interface import plain_program
from workers.quantize.saturation import exact_file
from workers.sources import architectures
from workers.sources.savedmodel.source import SavedModelSource
from workers.sources.torchscript import TorchScriptSource


def program(
    path: Path, params: PruneParams | ExportParams | BuildParams | MeasureParams
) -> ExportedProgram | None:
    """The source as a PyTorch program, or None if it isn't one.

    All its inputs and outputs are tensors; fixed inputs are baked in.

    Raises:
        InvalidModel, FixedInputRefused
    """
    if params.format is SourceFormat.PT2:
        found = load_program(path)
    elif params.format is SourceFormat.SAFETENSORS:
        assert params.architecture is not None
        found = architectures.load_program(path, params.architecture)
    else:
        return None
    left_out = plain_program(found)
    for name, why in left_out.items():
        print(f"the output {name} is left out: {why}", flush=True)
    if params.fixed_inputs:
        plain_program(found, fixing.values(params.fixed_inputs, specs(found)[0]))
    found.graph_module.meta["left_out"] = left_out
    return found


def reference(path: Path, params: ExportParams | MeasureParams, folder: Path) -> Runnable:
    """The source, ready to run on its inputs, except the fixed ones.

    Parameters:
        folder: for the files of a packed source.

    Raises:
        InvalidModel, FixedInputRefused
    """
    fixed = params.fixed_inputs
    if params.format is SourceFormat.TORCHSCRIPT:
        return TorchScriptSource(path, fixed)
    if params.format is SourceFormat.SAVEDMODEL:
        return savedmodel(SavedModelSource(path, folder), fixed)
    found = program(path, params)
    if found is not None:
        return EagerModel(found)
    file, model = files.read_model(path, folder)
    return onnx_model(file, model, fixed, folder)


def onnx_model(file: Path, model: onnx.ModelProto, fixed: FixedInputs, folder: Path) -> Runnable:
    """The ONNX model as it is, with its fixed inputs fed automatically.

    Parameters:
        folder: for an equivalent file that ONNX Runtime computes correctly.

    Raises:
        InvalidModel, FixedInputRefused
    """
    made = session(file, model, folder)
    return Fixed(made, fixing.values(fixed, interface.every_input(model))) if fixed else made


def session(
    file: Path, model: onnx.ModelProto, folder: Path, *, optimisation: Optimisation = "none"
) -> OrtModel:
    """The ONNX model in this file, ready to run: bf16 emulated, integers exact, normalised if needed.

    Raises:
        InvalidModel
    """
    is_bf16 = has_type(inlined(model), onnx.TensorProto.BFLOAT16)
    try:
        if not is_bf16:
            return OrtModel(exact_file(file, folder), optimisation=optimisation)
    except InvalidModel:
        if is_normal(inlined(onnx.load(str(file), load_external_data=False))):
            raise
    normal = normalised(inlined(onnx.load(str(file))))
    other = folder / f"reference-{uuid4().hex[:8]}.onnx"
    files.write_model(rounded_model(normal) if is_bf16 else normal, other)
    return OrtModel(exact_file(other, folder), optimisation=optimisation)


def savedmodel(source: SavedModelSource, fixed: FixedInputs) -> Runnable:
    """A SavedModel with its fixed inputs fed automatically; TensorFlow converts them to its types."""
    values = {name: np.asarray(value) for name, value in fixed.items()}
    return Fixed(source, values) if fixed else source
