"""Puts ``workers`` and ``migrations`` into the wheel and the sdist, from where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAMES = ("workers", "migrations")
#: Where farm/installed.py looks for them.
INSTALLED = "farm/_parts"


class Parts(BuildHookInterface[Any]):
    """The folders lie beside this file in an sdist, and two folders up in the repository."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # the farm finds them in the checkout
        here = Path(self.root)
        home = here if (here / NAMES[0]).is_dir() else here.parents[1]
        below = Path(INSTALLED) if self.target_name == "wheel" else Path()
        for file in (file for name in NAMES for file in sorted((home / name).rglob("*"))):
            if file.is_file() and "__pycache__" not in file.parts:
                place = below / file.relative_to(home)
                build_data["force_include"][str(file)] = place.as_posix()
