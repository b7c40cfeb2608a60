"""A first look at a source's bytes, before anything is planned. Nothing is loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

from farm.errors import InvalidRequest, SourceRefused
from farm.specs import SourceFormat

#: A pickle's first two bytes from protocol 2 on; older ones are text and fail as ONNX.
_PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def check(path: Path, format: SourceFormat) -> None:
    """Refuse what can't be a source of this format.

    Raises:
        SourceRefused: a pickle, or weights saved by ``torch.save``.
        InvalidRequest: not what the format says.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in _PICKLE:
        raise SourceRefused("this is a pickle: loading one runs whatever code is in it")
    names = _archive(path) if start == b"PK\x03\x04" else []
    if any(name.rpartition("/")[2] == "data.pkl" and name.count("/") == 1 for name in names):
        raise SourceRefused(
            "this was saved by torch.save or torch.jit.save: it holds a pickle, which runs code when loaded"
        )
    if format is SourceFormat.PT2 and not _is_program(names):
        raise InvalidRequest(
            "this isn't a torch.export program",
            hint="save it by torch.export.save(torch.export.export(model, …), 'model.pt2')",
        )
    if format is SourceFormat.ONNX and start == b"PK\x03\x04":
        raise InvalidRequest(
            "this is an archive, not an ONNX model",
            hint="if it is a torch.export program, give the format pt2",
        )


def _archive(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as err:
        raise InvalidRequest(
            f"the archive is broken: {err}", hint="check the file and upload it again"
        ) from err


def _is_program(names: list[str]) -> bool:
    inner = {name.partition("/")[2] for name in names} | set(names)
    return "archive_format" in inner or "serialized_exported_program.json" in inner
