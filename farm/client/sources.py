"""A source as the user has it: its format, and the one file or pack to submit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from farm.client import model_folders
from farm.client.upload import Content, require_file
from farm.errors import InvalidRequest, SourceRefused
from farm.formats import sources
from farm.formats.onnx_files import external_files, leads_out, location
from farm.formats.packs import MalformedPack, Pack, is_pack
from farm.formats.protobuf import MalformedMessage
from farm.specs.source import SourceFormat

_FORMATS = {
    ".onnx": SourceFormat.ONNX,
    ".pt2": SourceFormat.PT2,
    ".safetensors": SourceFormat.SAFETENSORS,
    ".tar": SourceFormat.ONNX,
    ".torchscript": SourceFormat.TORCHSCRIPT,
    ".ts": SourceFormat.TORCHSCRIPT,
}
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"})
_EXPORT_HINT = (
    "export it: torch.export.save(torch.export.export(model, (example,)), 'model.pt2'), "
    "then submit model.pt2"
)


class Found(NamedTuple):
    """A source's format and content."""

    format: SourceFormat
    content: Content
    file: Path  #: the model's own, without its data; of a SavedModel its folder
    architecture: str | None = None  #: of weights, as their configuration tells
    config: Mapping[str, Any] | None = None


def find(path: Path, given: str | None = None, architecture: str | None = None) -> Found:
    """The source at ``path``: a file, a model with its data files, or a folder of one.

    Parameters:
        given: the format, if the name and the bytes don't say.
        architecture: of weights, if their configuration's isn't to be taken.

    Raises:
        SourceRefused: a pickle by its name or its bytes, or an unsupported format.
        InvalidRequest: no such file, or its content doesn't match its name.
    """
    if path.is_dir():
        if given == SourceFormat.SAVEDMODEL or (path / sources.SAVED_MODEL).is_file():
            return Found(SourceFormat.SAVEDMODEL, _savedmodel(path), path)
        try:
            weights = _weights(path, given, architecture)
            if weights is not None:
                return weights
            path = model_folders.graph(path)
        except MalformedPack as err:
            raise InvalidRequest(
                f"{path} isn't a model: {err}", hint="name the .onnx file"
            ) from err
    kind = _format(path, given)
    require_file(path)
    sources.check_start(path, kind)
    if kind is SourceFormat.ONNX and not is_pack(path):
        return Found(kind, _with_data(path), path)
    sources.check(path, kind)
    told = None
    if kind is SourceFormat.SAFETENSORS and architecture is None:
        told = model_folders.of_config(path.parent / model_folders.CONFIG)
    return Found(kind, path, path, *(told or ()))


def _weights(folder: Path, given: str | None, architecture: str | None) -> Found | None:
    """The weights in a folder, if they are what is wanted of it."""
    if given not in (None, SourceFormat.SAFETENSORS):
        return None
    found = model_folders.weights(folder, given=architecture)
    if found is None:
        return None
    sources.check_start(found.file, SourceFormat.SAFETENSORS)
    return Found(
        SourceFormat.SAFETENSORS, found.content, found.file, found.architecture, found.config
    )


def architecture(
    given: str | None, config: Path | Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The request's architecture for safetensors weights.

    Parameters:
        given: ``LIBRARY:NAME``.
        config: the path of a ``config.json``, or its content.

    Raises:
        InvalidRequest
    """
    if given is None:
        if config is not None:
            raise InvalidRequest(
                "a configuration needs an architecture",
                hint="pass architecture='transformers:NAME'",
            )
        return None
    library, colon, name = given.partition(":")
    if not colon:
        raise InvalidRequest(
            f"{given!r} isn't an architecture", hint="write LIBRARY:NAME: transformers:BertModel"
        )
    return {"library": library, "name": name, "config": _config(config)}


def _config(config: Path | Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(config, Path):
        return dict(config or {})
    require_file(config)
    try:
        found = json.loads(config.read_text())
    except ValueError as err:
        raise InvalidRequest(f"{config} isn't JSON: {err}", hint="give a config.json") from err
    if not isinstance(found, dict):
        raise InvalidRequest(f"{config} isn't a JSON object", hint="give a config.json")
    return found


def _format(path: Path, given: str | None) -> SourceFormat:
    if given is not None:
        try:
            return SourceFormat(given)
        except ValueError as err:
            known = ", ".join(SourceFormat)
            raise InvalidRequest(
                f"{given!r} isn't a source format", hint=f"choose one of {known}"
            ) from err
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        if path.is_file() and sources.is_torchscript(path):
            return SourceFormat.TORCHSCRIPT
        raise SourceRefused(
            f"{path.name}: a {suffix} file is a pickle, which runs code when it is loaded",
            hint=_EXPORT_HINT,
        )
    if suffix == ".tar" and path.is_file() and sources.is_savedmodel(path):
        return SourceFormat.SAVEDMODEL
    if suffix not in _FORMATS:
        raise SourceRefused(
            f"{path.name}: a source is an .onnx, .pt2, .pt or .safetensors file, or a SavedModel's folder",
            hint=_EXPORT_HINT,
        )
    return _FORMATS[suffix]


def _savedmodel(folder: Path) -> Pack:
    """The files of the folder that TensorFlow reads, without the fingerprint, which differs with each
    save."""
    graph = folder / sources.SAVED_MODEL
    require_file(graph)
    variables = sorted(path for path in (folder / "variables").rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in [graph, *variables]}
    return Pack(name=folder.name, files=files)


def _with_data(path: Path) -> Content:
    """The model, packed with its external data files if it has any."""
    try:
        names = external_files(path)
    except MalformedMessage:
        return path  # the export reports what is wrong with it
    if not names:
        return path
    data = {location(name): _data_file(path, name) for name in sorted(names)}
    model = "model.onnx"
    while model in data:  # weights may use this name
        model = f"_{model}"
    # Symlinks, such as in a hub's cache, are followed here: their targets are what is submitted.
    return Pack(name=path.name, files={model: path} | data)


def _data_file(model: Path, name: str) -> Path:
    """The external data file of this name."""
    place = location(name)
    if leads_out(place):
        raise InvalidRequest(
            f"{model.name} keeps weights in {name!r}, which isn't beside it",
            hint="save it again: onnx.save(onnx.load(path), path, save_as_external_data=True)",
        )
    # First literally, since a name may contain a backslash; then as a path.
    for found in (model.parent / name, model.parent / place):
        if found.is_file():
            return found
    raise InvalidRequest(
        f"{model.name} keeps weights in {name!r}, which isn't there",
        hint=f"put it beside the model: {model.parent / place}",
    )
