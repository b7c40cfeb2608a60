"""A first look at a source's bytes, before anything is planned. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from farm.errors import InvalidRequest, SourceRefused
from farm.formats import packs
from farm.formats.archives import Malformed, zip_names
from farm.formats.onnx_files import (
    OnnxNames,
    external_files,
    location,
    names,
    operators,
)
from farm.formats.onnx_interface import interface
from farm.formats.packs import Member
from farm.formats.protobuf import Effort, MalformedMessage, TooManyFields
from farm.reports.interfaces import Interface
from farm.specs.source import SourceFormat

PACK_HINT = (
    "`farm submit model.onnx` packs a model with its data files; by hand: "
    "tar cf model.tar model.onnx model.onnx.data"
)
#: The graph of a SavedModel, in its folder.
SAVED_MODEL = "saved_model.pb"
_SAVEDMODEL_HINT = (
    "`farm submit FOLDER` packs the folder that contains saved_model.pb; by hand: "
    "tar cf model.tar -C FOLDER saved_model.pb variables"
)
#: Files named .onnx to inspect for which of them is the model.
_MAX_CANDIDATES = 256
#: A pickle's first two bytes from protocol 2 on; older ones are text and fail as ONNX.
_PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


#: The operators that mark a quantised graph.
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a first look at a source found about its graph."""

    operators: frozenset[str] | None = None  #: None if not determined
    may_be_quantized: bool = False  #: then int8 needs no data; the export determines whether it is
    interface: Interface | None = (
        None  #: as declared, with inputs that may be fixed; None if unknown
    )


#: For sources accepted earlier, which aren't inspected again.
TAKEN = Look(may_be_quantized=True)


def look(path: Path, format: SourceFormat) -> Look:
    """What can be found out about a source without loading it: an ONNX model's operators, inputs and outputs,
    nothing for others."""
    if format is not SourceFormat.ONNX:
        return Look()
    try:
        return _look(path, packs.members(path) if packs.is_pack(path) else None)
    except packs.MalformedPack:
        return Look()  # the export reports what is wrong with it


def _look(path: Path, there: Mapping[str, Member] | None) -> Look:
    try:
        place = _place(there)
        found, ports = operators(path, *place), interface(path, *place)
    except (packs.MalformedPack, MalformedMessage):
        return Look()
    return Look(
        operators=found,
        may_be_quantized=found is None or not _QUANTIZING.isdisjoint(found),
        interface=ports,
    )


def onnx_names(path: Path) -> OnnxNames:
    """What an ONNX model, or the one in a pack, says it is called; nothing if it is damaged."""
    try:
        if not packs.is_pack(path):
            return names(path)
        there = packs.members(path)
        model = there[_model_among(path, there, Effort())]
        return names(path, model.offset, model.bytes)
    except (packs.MalformedPack, MalformedMessage, TooManyFields):
        return OnnxNames()  # the export reports what is wrong with it


def _place(there: Mapping[str, Member] | None) -> tuple[int, int | None]:
    """Where the model is in its file."""
    if there is None:
        return 0, None
    model = there[packs.one_ending(there, ".onnx")]
    return model.offset, model.bytes


def check(path: Path, format: SourceFormat) -> Look:
    """Refuse what can't be a source of this format; return what a ``look`` finds.

    Raises:
        SourceRefused: a pickle, or weights saved by ``torch.save``.
        InvalidRequest: it doesn't match the format.
    """
    check_start(path, format)
    if format is SourceFormat.SAVEDMODEL:
        _check_savedmodel(path)
    if format is not SourceFormat.ONNX:
        return Look()
    # Read once: for a pack of ten thousand files that takes a second.
    there = _pack(path)
    _check_onnx(path, there)
    return _look(path, there)


def _pack(path: Path) -> Mapping[str, Member] | None:
    """The files in a pack; None if the model is a single file."""
    try:
        return packs.members(path) if packs.is_pack(path) else None
    except packs.MalformedPack as err:
        raise _no_model(err) from err


def _no_model(err: packs.MalformedPack) -> InvalidRequest:
    return InvalidRequest(f"this archive isn't a model: {err}", hint=PACK_HINT)


def check_start(path: Path, format: SourceFormat) -> None:
    """The part of ``check`` that needs no other files.

    Raises:
        SourceRefused, InvalidRequest
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in _PICKLE:
        raise SourceRefused("this is a pickle: loading it would run any code in it")
    names = _archive(path) if start == b"PK\x03\x04" else []
    if format is SourceFormat.SAFETENSORS:
        _check_safetensors(path)
    if format is SourceFormat.TORCHSCRIPT and has_torchscript(names):
        return
    if any(name.rpartition("/")[2] == "data.pkl" and name.count("/") == 1 for name in names):
        what = (
            "torch.jit.save: use the format torchscript"
            if has_torchscript(names)
            else ("torch.save: it contains a pickle, which runs code when loaded")
        )
        raise SourceRefused(f"this was saved with {what}")
    if format is SourceFormat.TORCHSCRIPT:
        raise InvalidRequest(
            "this isn't TorchScript", hint="save it with torch.jit.trace(model, example).save(path)"
        )
    if format is SourceFormat.PT2 and not is_program(names):
        raise InvalidRequest(
            "this isn't a torch.export program",
            hint="save it with torch.export.save(torch.export.export(model, …), 'model.pt2')",
        )
    if format is SourceFormat.ONNX and start == b"PK\x03\x04":
        raise InvalidRequest(
            "this is an archive, not an ONNX model",
            hint="if it is a torch.export program, use the format pt2",
        )


def _check_onnx(path: Path, there: Mapping[str, Member] | None) -> None:
    """Every file that the model names must have been submitted with it."""
    effort = Effort()
    try:
        if there is not None:
            model = there[_model_among(path, there, effort)]
            folder = PurePosixPath(model.name).parent
            kept = external_files(path, model.offset, model.bytes, effort=effort)
            missing = {name for name in kept if str(folder / location(name)) not in there}
        else:
            missing = set(external_files(path, effort=effort))
    except packs.MalformedPack as err:
        raise _no_model(err) from err
    except (MalformedMessage, TooManyFields):
        return  # the export reports what is wrong with it
    if missing:
        raise InvalidRequest(
            f"the model keeps weights in {', '.join(map(repr, sorted(missing)[:5]))}, "
            "which wasn't submitted with it",
            hint=PACK_HINT,
        )


def model_in_pack(path: Path) -> str:
    """The name of the ONNX model in a pack. Data files may be called ``.onnx`` as well.

    Raises:
        MalformedPack: there is none, or several.
        MalformedMessage
    """
    return _model_among(path, packs.members(path), None)


def _model_among(path: Path, there: Mapping[str, Member], effort: Effort | None) -> str:
    named = [name for name in there if name.lower().endswith(".onnx")]
    if len(named) == 1:
        return named[0]
    found = {name: (path, there[name].offset, there[name].bytes) for name in named}
    return _one_model(found, effort)


def models_in_folder(folder: Path) -> list[Path]:
    """The ONNX models in a folder, without data files that are called ``.onnx`` as well.

    Raises:
        MalformedPack: it has too many files to look at.
    """
    named = {path.name: path for path in folder.iterdir() if path.name.lower().endswith(".onnx")}
    models = _models({name: (path, 0, None) for name, path in sorted(named.items())})
    return [named[name] for name in models]


_Candidates = Mapping[str, tuple[Path, int, int | None]]


def _one_model(candidates: _Candidates, effort: Effort | None = None) -> str:
    """The one that isn't another's data file."""
    return packs.one_ending(dict.fromkeys(_models(candidates, effort)), ".onnx")


def _models(candidates: _Candidates, effort: Effort | None = None) -> list[str]:
    """Those that aren't another's data file."""
    if len(candidates) > _MAX_CANDIDATES:
        raise packs.MalformedPack(
            f"it must contain one .onnx file, and there are {len(candidates)}"
        )
    data: set[str] = set()
    for name, (path, offset, size) in candidates.items():
        if len(candidates) == 1:
            break
        try:
            kept = external_files(path, offset, size, effort=effort)
        except MalformedMessage:  # a data file, which another model names
            continue
        folder = PurePosixPath(name).parent
        data |= {str(folder / location(one)) for one in kept}
    return [name for name in candidates if name not in data]


def savedmodel_root(names: Iterable[str]) -> PurePosixPath:
    """The SavedModel's folder in a pack.

    Raises:
        MalformedPack: there is none, or several.
    """
    found = [path for path in map(PurePosixPath, names) if path.name == SAVED_MODEL]
    if len(found) != 1:
        raise packs.MalformedPack(f"it must contain one {SAVED_MODEL}, and there are {len(found)}")
    return found[0].parent


def _check_savedmodel(path: Path) -> None:
    if not packs.is_pack(path):
        raise InvalidRequest("this isn't a SavedModel archive", hint=_SAVEDMODEL_HINT)
    try:
        savedmodel_root(packs.members(path))
    except packs.MalformedPack as err:
        raise InvalidRequest(
            f"this archive isn't a SavedModel: {err}", hint=_SAVEDMODEL_HINT
        ) from err


def is_savedmodel(path: Path) -> bool:
    """Whether a file is a pack of one SavedModel and no ONNX, by its names."""
    try:
        names = packs.members(path) if packs.is_pack(path) else {}
        savedmodel_root(names)
    except packs.MalformedPack:
        return False
    return not any(name.lower().endswith(".onnx") for name in names)


def is_torchscript(path: Path) -> bool:
    """Whether a file was saved by ``torch.jit.save``: by its names, nothing is loaded."""
    try:
        return has_torchscript(zip_names(path))
    except Malformed:
        return False


def has_torchscript(names: list[str]) -> bool:
    inner = {name.partition("/")[2] for name in names}
    return {"data.pkl", "constants.pkl"} <= inner and any(n.startswith("code/") for n in inner)


def _check_safetensors(path: Path) -> None:
    """Its first eight bytes are the size of its header, which is a JSON object."""
    with path.open("rb") as file:
        size, start = int.from_bytes(file.read(8), "little"), file.read(1)
    if start != b"{" or size + 8 > path.stat().st_size:
        raise InvalidRequest(
            "this isn't a safetensors file", hint="save it with safetensors.torch.save_model"
        )


def _archive(path: Path) -> list[str]:
    try:
        names = zip_names(path)
    except Malformed as err:
        raise InvalidRequest(
            f"the archive is broken: {err}", hint="check the file and upload it again"
        ) from err
    if not names:
        raise InvalidRequest(
            "the archive is broken: its directory is missing or empty",
            hint="check the file and upload it again",
        )
    return names


def is_program(names: list[str]) -> bool:
    inner = {name.partition("/")[2] for name in names} | set(names)
    return "archive_format" in inner or "serialized_exported_program.json" in inner
