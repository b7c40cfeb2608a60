"""The parts of a sandbox, and the state of each on a machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How much of the sandbox a worker insists on."""

    BEST = "best"  #: what this machine can enforce
    REQUIRED = "required"  #: all of it, or no job runs here
    OFF = "off"  #: none; for machines where every model is trusted


class Feature(StrEnum):
    """A part of the sandbox. The value is its name in messages."""

    FILES = "files"  #: reads its inputs and the libraries, writes its work folder
    NETWORK = "network"  #: reaches no address and no socket of this machine
    CALLS = "system calls"  #: makes no system call that a job doesn't need
    PRIVILEGES = "privileges"  #: has no capability and gets none
    USER = "user"  #: isn't the superuser
    SECRETS = "secrets"  #: can't read the worker's environment, descriptors or processes
    SIGNALS = "signals"  #: can't signal other processes
    DESCENDANTS = "descendants"  #: processes it started end with it
    MEMORY = "memory"  #: has a limit
    DISK = "disk"  #: has a limit
    PROCESSES = "processes"  #: has a limit


@dataclass(frozen=True, kw_only=True)
class Found:
    """The state of one part."""

    feature: Feature
    enforced: bool
    how: str  #: by which mechanism, or why not

    def as_json(self) -> dict[str, object]:
        return {"enforced": self.enforced, "how": self.how}


def missing(found: Iterable[Found]) -> list[str]:
    """The parts that aren't enforced, each with the reason."""
    return [f"{one.feature} ({one.how})" for one in found if not one.enforced]
