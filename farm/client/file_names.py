"""What an engine's file is called on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from farm.errors import DigestMismatch
from farm.schemas.engines import EngineView

#: Valid model names: no folders, hidden files, or characters that a shell expands.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")


def file_name(engine: EngineView, *, with_runtime: bool = False) -> str:
    """The name that the engine's file has here.

    Raises:
        DigestMismatch: it could lead out of its folder.
    """
    return checked(engine.file_name(with_runtime=with_runtime))


def checked(name: str) -> str:
    """A name that can't leave its folder, whoever runs the farm.

    Raises:
        DigestMismatch
    """
    if not _NAME.fullmatch(name):
        raise DigestMismatch(
            f"the farm gives an engine's file the name {name!r}, which may lead elsewhere; nothing was kept",
            hint="don't use this farm, and alert its operator: its records may have been tampered with",
        )
    return name


def file_names(engines: Sequence[EngineView]) -> dict[str, str]:
    """Engine id → its file name, including the runtime if two would otherwise share one."""
    names = [file_name(engine) for engine in engines]
    return {
        engine.id: file_name(engine, with_runtime=names.count(name) > 1)
        for engine, name in zip(engines, names, strict=True)
    }
