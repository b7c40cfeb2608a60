"""The name of a model that was submitted without one: its file's, or what is in the file or around it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from farm.client.generic_names import is_generic, is_place, parts, words
from farm.errors import NameMissing
from farm.formats import sources
from farm.specs.source import SourceFormat

_MAX_LENGTH = 100
_MAX_CONFIG_BYTES = 4 * 2**20
#: Folders to look at, the file's own first: ``models--org--name/snapshots/<hash>/onnx``.
_MOST_FOLDERS = 4
_HUB = re.compile(r"models--(?:.+--)?(.+)")
_CONFIG = "config.json"


class ModelName(NamedTuple):
    name: str
    after: str | None = None  #: what told it, unless it was given or is the file's own


def default_name(
    given: Path,
    file: Path,
    format: SourceFormat,
    *,
    architecture: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
) -> ModelName:
    """The name of a model that was given none.

    That of its file or folder, unless every model's file is called so. Else, of what tells: its graph; the
    configuration, given or beside it; the folder that it is in; and last its class, which it shares with all
    models of that class.

    Parameters:
        given: the file, or the folder with it, to submit.
        file: the model's own, or a SavedModel's folder.
        architecture, config: as in ``Farm.submit``.

    Raises:
        NameMissing: nothing tells.
    """
    is_folder = given.is_dir()
    above = _Above(given if is_folder else given.parent)
    if is_folder and above.telling == given.resolve():
        return ModelName(cleaned(above.name))
    own = "" if file.is_dir() else file.stem
    if not is_generic(own):
        return ModelName(cleaned(own))
    part = dict.fromkeys([*above.parts, *parts(own)])
    for name, after in _told(file, format, architecture, config, above):
        if len(name) > 1 and not is_generic(name):
            return ModelName(cleaned(name, part), after)
    raise NameMissing(f"neither {given} nor its folder tells what the model is called")


class _Above:
    """The folders that a file is in, up to the first that tells of a model.

    Parameters:
        folder: not of a resolved file: in a hub's cache it is a link, which leads to where all files are.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self.telling: Path | None = None
        self.name = ""
        self.parts: list[str] = []  #: of a model, from the outer folders' names to the inner ones'
        self.searched = [folder]  #: where its configuration may lie, the nearest first
        for path in [folder, *folder.parents][:_MOST_FOLDERS]:
            if _is_place(path):
                return
            if path != folder:
                self.searched.append(path)
            name = _of_hub(path.name)
            if not is_generic(name):
                self.telling, self.name = path, name
                return
            self.parts[:0] = parts(name)


def _is_place(folder: Path) -> bool:
    return (
        is_place(folder.name)
        or folder.parent.name.lower() in ("home", "users")
        or folder == Path(folder.anchor)
        or _is_home(folder)
    )


def _is_home(folder: Path) -> bool:
    try:
        return folder == Path.home()
    except RuntimeError:  # a user without one
        return False


def _of_hub(folder: str) -> str:
    """The model's name in that of its folder in a hub's cache; others are returned as they are."""
    found = _HUB.fullmatch(folder)
    return found[1] if found else folder


def _told(
    file: Path,
    format: SourceFormat,
    architecture: str | None,
    config: Path | Mapping[str, Any] | None,
    above: _Above,
) -> Iterator[tuple[str, str]]:
    """Names, and what tells them, the best first."""
    if format is SourceFormat.ONNX:
        inside = sources.onnx_names(file)
        yield inside.graph, "its graph's name"
        yield inside.metadata, "its metadata"
    found, place = _configuration(config, above)
    yield last_of(_text(found, "_name_or_path")), f"_name_or_path in {place}"
    library, _, module = (architecture or "").partition(":")
    if library != "transformers":
        yield module, "its architecture"
    if "num_classes" in found:  # timm's; elsewhere the field may be a processor's
        yield _text(found, "architecture"), f"the architecture in {place}"
    if above.telling is not None:
        yield above.name, f"the folder {above.telling.name}"
    classes = found.get("architectures")
    yield module, "its architecture"
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        yield classes[0], f"the architecture in {place}"


def _configuration(
    given: Path | Mapping[str, Any] | None, above: _Above
) -> tuple[Mapping[str, Any], str]:
    """A configuration and how to call it: the one given, or else the nearest; empty if there is none."""
    if isinstance(given, Mapping):
        return given, "the configuration"
    for path in [given] if given else [folder / _CONFIG for folder in above.searched]:
        found = _read(path)
        if found is not None:
            return found, path.name
    return {}, _CONFIG


def _read(path: Path) -> Mapping[str, Any] | None:
    """A JSON object; None for anything else, which may be another program's."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(config: Mapping[str, Any], field: str) -> str:
    value = config.get(field)
    return value if isinstance(value, str) else ""


def last_of(name_or_path: str) -> str:
    """``openai/whisper-tiny``, or a folder on the machine that trained it → ``whisper-tiny``."""
    folders = re.split(r"[/\\]+", name_or_path.rstrip("/\\"))
    for folder in reversed(folders):
        if _HUB.fullmatch(folder):
            return _of_hub(folder)
    return folders[-1]


def cleaned(name: str, part: Iterable[str] = ()) -> str:
    """A name without the characters that names can't have, and with a part that it doesn't tell itself."""
    there = words(name)
    suffix = "".join(f"-{word}" for word in part if word not in there)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")
    return plain[: _MAX_LENGTH - len(suffix)] + suffix
