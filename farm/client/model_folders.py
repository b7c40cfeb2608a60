"""Folders as hubs and exporters lay them out: weights with their configuration, or ONNX graphs.

A folder may have a model in several forms: its weights, if the farm builds their class, else the one ONNX
graph that isn't a variant of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from farm.client.generic_names import is_generic, parts
from farm.errors import InvalidRequest, SourceRefused
from farm.formats import sources
from farm.formats.archives import Malformed
from farm.formats.shards import Shards
from farm.specs import architectures

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PIPELINE = "model_index.json"
_ADAPTER = "adapter_config.json"
_GRAPHS = "onnx"
_PICKLED = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")
_MAX_JSON_BYTES = 16 << 20
_EXPORT_HINT = (
    "export it, with optimum-cli export onnx --model {folder} onnx/ or with torch.export, and submit the "
    "result; or pass --architecture with a class that the farm knows"
)


class Weights(NamedTuple):
    """Weights, and what they are of as far as their configuration tells."""

    file: Path
    content: Path | Shards
    architecture: str | None  #: ``LIBRARY:NAME``
    config: Mapping[str, Any]


def is_one(folder: Path) -> bool:
    """Whether a folder looks like a model's."""
    return any((folder / name).is_file() for name in (CONFIG, _WEIGHTS, _INDEX)) or bool(
        _graphs(folder)
    )


def weights(folder: Path, *, given: str | None = None) -> Weights | None:
    """The weights in a folder that the farm can build; None if there are none, but ONNX graphs.

    Parameters:
        given: the architecture, if the configuration's isn't to be taken.

    Raises:
        SourceRefused: the folder has only what the farm can't build.
        InvalidRequest: its files are damaged.
    """
    file, content = _content(folder)
    if content is None:
        if not _graphs(folder):
            _refuse_others(folder)
        return None
    found = of_config(folder / CONFIG)
    if given is not None:
        return Weights(file, content, given, found[1] if found else {})
    reason = "there is no config.json beside its weights that tells their class"
    if found is not None:
        library, _, name = found[0].partition(":")
        reason = architectures.refusal(library, name, found[1]) or ""
    if found is not None and not reason:
        return Weights(file, content, *found)
    if _graphs(folder):
        return None
    raise SourceRefused(f"{folder}: {reason}", hint=_EXPORT_HINT.format(folder=folder))


def of_config(path: Path) -> tuple[str, Mapping[str, Any]] | None:
    """The architecture that a ``config.json`` names, and its configuration; None if it names none."""
    if not path.is_file():
        return None
    config = _json(path)
    classes = config.get("architectures")
    if isinstance(classes, list) and len(classes) == 1 and isinstance(classes[0], str):
        return f"transformers:{classes[0]}", config
    if isinstance(config.get("architecture"), str) and "num_classes" in config:  # timm's
        made = config.get("model_args") or {}
        fields = {"num_classes": config["num_classes"]} | (made if isinstance(made, dict) else {})
        return f"timm:{config['architecture']}", fields
    return None


def graph(folder: Path) -> Path:
    """The ONNX graph in a folder, or in its folder ``onnx``: the one that isn't a variant of another.

    Raises:
        InvalidRequest: there is none, or several that are models of their own.
    """
    found = _graphs(folder)
    if not found:
        raise InvalidRequest(
            f"{folder} has no model that the farm builds",
            hint="it may have an .onnx file, also below onnx/, model.safetensors with its config.json, or "
            "saved_model.pb",
        )
    if len(found) == 1:
        return found[0]
    # model_fp16, model_quantized: the farm makes its own of model.
    full = [path for path in found if path.stem.lower() == "model"]
    others = [path for path in found if path not in full]
    if len(full) == 1 and all(_is_variant(path) for path in others):
        return full[0]
    names = ", ".join(path.relative_to(folder).as_posix() for path in found)
    raise InvalidRequest(
        f"{folder} has several models: {names}; which one?",
        hint=f"each is a model of its own: farm submit {found[0]}",
    )


def _is_variant(path: Path) -> bool:
    return is_generic(path.stem) and not parts(path.stem)


def _graphs(folder: Path) -> Sequence[Path]:
    """The ONNX models at the top of a folder, or else in its folder ``onnx``."""
    for place in (folder, folder / _GRAPHS):
        if place.is_dir() and (found := sources.models_in_folder(place)):
            return found
    return []


def _content(folder: Path) -> tuple[Path, Path | Shards | None]:
    """The weights' file, or the first of several, and what to submit."""
    if (folder / _WEIGHTS).is_file():
        return folder / _WEIGHTS, folder / _WEIGHTS
    if not (folder / _INDEX).is_file():
        return folder, None
    names = _json(folder / _INDEX).get("weight_map")
    files = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    missing = [name for name in files if "/" in name or not (folder / name).is_file()]
    if missing or not files:
        raise InvalidRequest(
            f"{folder / _INDEX} names {', '.join(missing) or 'no files'}, which isn't there",
            hint="download the whole model again",
        )
    shards = Shards(name=_WEIGHTS, paths=[folder / name for name in files])
    try:
        _ = shards.total_bytes
    except Malformed as err:
        raise InvalidRequest(f"{folder}: {err}", hint="download the model again") from err
    return folder / files[0], shards


def _refuse_others(folder: Path) -> None:
    """Refuse what only looks like a model's folder, with what to do.

    Raises:
        SourceRefused
    """
    if (folder / _PIPELINE).is_file():
        inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        raise SourceRefused(
            f"{folder} is a pipeline of several models: {', '.join(inner)}",
            hint="export the one you want, with optimum-cli export onnx or torch.export, and submit that",
        )
    if (folder / _ADAPTER).is_file():
        raise SourceRefused(
            f"{folder} has an adapter without its base model",
            hint="merge them: model.merge_and_unload().save_pretrained(folder); then submit that folder",
        )
    pickles = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickles:
        raise SourceRefused(
            f"{folder} has its weights in {', '.join(pickles[:3])}: pickles, which run code when loaded",
            hint="save them as safetensors, model.save_pretrained(folder, safe_serialization=True), and "
            "submit that folder",
        )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too long")
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise InvalidRequest(f"{path} isn't JSON: {err}", hint="download it again") from err
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} isn't a JSON object", hint="download it again")
    return found
