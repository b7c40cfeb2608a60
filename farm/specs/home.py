"""Where an embedded farm keeps its state."""

from __future__ import annotations

from pathlib import Path

#: Unless FARM_HOME names another folder.
DEFAULT_HOME = Path("~/.engine-farm")
