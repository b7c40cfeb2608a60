"""What a source is when it runs: the reference that everything made of it is held against."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from farm.specs import BuildParams, ExportParams, MeasureParams, PruneParams, SourceFormat
from workers import architectures, graphs
from workers.backends.ort import OrtModel
from workers.eager import EagerModel
from workers.samples import Runnable
from workers.saturation import exact_file
from workers.savedmodel import SavedModelSource
from workers.sources import load_program
from workers.torchscript import TorchScriptSource


def program(
    path: Path, params: PruneParams | ExportParams | BuildParams | MeasureParams
) -> ExportedProgram | None:
    """The source as a program of PyTorch, or None where it is no such thing.

    Raises:
        InvalidModel
    """
    if params.format is SourceFormat.PT2:
        return load_program(path)
    if params.format is SourceFormat.SAFETENSORS:
        assert params.architecture is not None
        return architectures.load_program(path, params.architecture)
    return None


def reference(path: Path, params: ExportParams | MeasureParams, folder: Path) -> Runnable:
    """The source, ready to run.

    Parameters:
        folder: for files of a source that is a pack.

    Raises:
        InvalidModel
    """
    if params.format is SourceFormat.TORCHSCRIPT:
        return TorchScriptSource(path)
    if params.format is SourceFormat.SAVEDMODEL:
        return SavedModelSource(path, folder)
    found = program(path, params)
    if found is not None:
        return EagerModel(found)
    file, _ = graphs.read_model(path, folder)
    return OrtModel(exact_file(file, folder), optimisation="none")
