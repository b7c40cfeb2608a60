"""What a sandbox consists of, and what is known of each part on a machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How much of the sandbox a worker insists on."""

    BEST = "best"  #: what this machine can enforce
    REQUIRED = "required"  #: all of it, or no job runs here
    OFF = "off"  #: none; for machines on which every model is one's own


class Feature(StrEnum):
    """A part of the sandbox. The value is what people call it."""

    FILES = "files"  #: reads its inputs and the libraries, writes its work folder
    NETWORK = "network"  #: reaches no address and no socket of this machine
    CALLS = "system calls"  #: asks the kernel for nothing that a job doesn't need
    PRIVILEGES = "privileges"  #: has no capability and gets none
    USER = "user"  #: isn't the superuser
    SECRETS = "secrets"  #: no environment, descriptor or process of the worker's to read
    SIGNALS = "signals"  #: reaches no other process
    DESCENDANTS = "descendants"  #: what it started ends with it
    MEMORY = "memory"  #: has a limit
    DISK = "disk"  #: has a limit
    PROCESSES = "processes"  #: has a limit


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of one part."""

    feature: Feature
    enforced: bool
    how: str  #: by what, or why not

    def as_json(self) -> dict[str, object]:
        return {"enforced": self.enforced, "how": self.how}


def missing(found: Iterable[Found]) -> list[str]:
    """The parts that aren't enforced, with the reason."""
    return [f"{one.feature} ({one.how})" for one in found if not one.enforced]
