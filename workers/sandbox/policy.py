"""What one job may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workers.sandbox.features import Mode
from workers.sandbox.limits import Limits

#: In a job's work folder: what its libraries keep. Gone before the job's outputs are looked at.
SCRATCH = ".scratch"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What one job may do, as it is handed to its process."""

    workdir: Path  #: reads and writes
    reads: tuple[Path, ...]  #: files, beside the libraries
    limits: Limits
    mode: Mode = Mode.BEST
    gpu: bool = False
    own_user: bool = True  #: as the superuser, run as a user of its own
    libraries: tuple[Path, ...] = ()  #: more folders of libraries, to read
    environment: tuple[str, ...] = ()  #: more variables to keep

    @property
    def scratch(self) -> Path:
        return self.workdir / SCRATCH
