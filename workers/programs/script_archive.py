"""Scans the archive of a TorchScript module before PyTorch loads it.

Loading runs code: PyTorch evaluates the defaults of arguments and the constants of classes and calls
``__setstate__``. It also trusts that a record is as long as its storage claims, and that a pickled value
has the type that its class declares. So it only gets archives in which defaults and constants are
literals, no class defines ``__setstate__``, and records and values are what they claim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch._C import PyTorchFileReader

from workers.programs.script_code import Class, read_code
from workers.programs.script_pickle import Storages, read_pickle
from workers.programs.script_records import Records, RefusedArchive, record
from workers.programs.script_values import Values

_MAX_RECORDS = 200_000

_ZIP = b"PK\x03\x04"

_RECORD = re.compile(
    r"(?:data|constants|traced_inputs|bytecode|mobile_debug_handles)(?:\.pkl|/\d+)"
    r"|code/[\w./]+\.py(?:\.debug_pkl)?|extra/.*|version|byteorder"
    r"|\.format_version|\.storage_alignment|\.data/\w+",
    re.ASCII,
)

_PICKLES = ("constants", "data", "traced_inputs")


def scan(path: Path) -> None:
    """Check everything in an archive that ``torch.jit.load`` reads, without running any of it.

    Raises:
        RefusedArchive
    """
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            raise RefusedArchive("it isn't an archive")
    try:
        reader: Records = PyTorchFileReader(str(path))
        names = reader.get_all_records()
    except RuntimeError as err:
        raise RefusedArchive("its directory is damaged") from err
    _check_names(names)
    classes: dict[str, Class] = {}
    for name in names:
        if name.startswith("code/") and name.endswith(".py"):
            classes |= read_code(name, record(reader, name))
    for which in _PICKLES:
        if f"{which}.pkl" in names:
            content = record(reader, f"{which}.pkl")
            Values(classes).check(read_pickle(content, Storages(reader, which, set(names))))


def _check_names(names: Sequence[str]) -> None:
    if len(names) > _MAX_RECORDS:
        raise RefusedArchive(f"it holds more than {_MAX_RECORDS} records")
    # PyTorch matches record names case-insensitively.
    if len({name.lower() for name in names}) < len(names):
        raise RefusedArchive("it holds two records of one name")
    for name in names:
        if not _RECORD.fullmatch(name):
            raise RefusedArchive(f"it holds {name[:80]!r}, which TorchScript doesn't")
    if "data.pkl" not in names or not any(name.startswith("code/") for name in names):
        raise RefusedArchive("there is no TorchScript in it")
