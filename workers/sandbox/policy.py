"""What one job may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workers.sandbox.features import Mode
from workers.sandbox.limits import Limits

#: Subfolder of a job's work folder for its libraries' files. Deleted before the outputs are read.
SCRATCH = ".scratch"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What one job may do, as passed to its process."""

    workdir: Path  #: reads and writes
    reads: tuple[Path, ...]  #: files, besides the libraries
    limits: Limits
    mode: Mode = Mode.BEST
    gpu: bool = False
    own_user: bool = True  #: if the worker is root, run as a separate user
    libraries: tuple[Path, ...] = ()  #: more library folders, readable
    environment: tuple[str, ...] = ()  #: more variables to keep

    @property
    def scratch(self) -> Path:
        return self.workdir / SCRATCH
