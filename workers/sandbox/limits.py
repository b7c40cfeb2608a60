"""Limits on what a job may use of its machine; by default, a share of what is available."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GIB = 2**30
#: Memory kept from jobs, for the system, the worker and the page cache.
_OTHERS_SHARE, _OTHERS_BYTES = 0.1, _GIB
#: Address space may be reserved and never used, as threads' stacks are: a reservation may exceed the
#: memory limit by this much.
_ASKED_SHARE, _ASKED_BYTES = 1.25, 2 * _GIB
#: Page tables alone take 1/512 of the address space; libraries reserve far more than they use.
_SPACE_SHARE, _SPACE_BYTES = 16, 256 * _GIB
_DISK_SHARE = 0.8
_FEW_PROCESSES, _PROCESSES_A_CORE = 1024, 64
_OPEN_FILES = 4096
_OOM_FIRST = 1000  #: the kernel kills this process first when memory runs out


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on what a job's processes may use together; None is unlimited."""

    memory_bytes: int | None = None
    disk_bytes: int | None = None  #: for its work folder, and so for each file in it
    processes: int | None = None  #: including threads
    cpu_s: float | None = None  #: per process

    @classmethod
    def of_machine(
        cls,
        folder: Path,
        *,
        slots: int,
        timeout_s: float,
        memory_bytes: int | None = None,
        disk_bytes: int | None = None,
    ) -> Limits:
        """The limits of one of several concurrent jobs, from what is available now.

        Parameters:
            folder: a folder on the disk of the work folders.
            memory_bytes, disk_bytes: override the computed share.
        """
        memory = machine_memory_bytes()
        for_jobs = max(memory * (1 - _OTHERS_SHARE) - _OTHERS_BYTES, memory / 2)
        cores = os.cpu_count() or 1
        return cls(
            memory_bytes=memory_bytes or int(for_jobs / slots),
            disk_bytes=disk_bytes or int(shutil.disk_usage(folder).free * _DISK_SHARE / slots),
            processes=max(_FEW_PROCESSES, _PROCESSES_A_CORE * cores),
            cpu_s=timeout_s * cores,
        )

    def as_json(self) -> dict[str, float | None]:
        return {
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "processes": self.processes,
            "cpu_s": self.cpu_s,
        }


def machine_memory_bytes() -> int:
    """This machine's memory, or its container's limit if lower."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_cgroup_limits()])


def _cgroup_limits(
    groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup"
) -> Iterator[int]:
    """Memory limits of this process's control groups and of their ancestors, in bytes."""
    # Every job asks, and pathlib would take most of the time.
    with suppress(OSError):
        for line in _read(groups).splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _limits_above(root, path, "memory.max")
            elif "memory" in controllers.split(","):
                yield from _limits_above(f"{root}/memory", path, "memory.limit_in_bytes")


def _limits_above(root: str, path: str, name: str) -> Iterator[int]:
    at = path.strip("/")
    while at:
        yield from _limit(f"{root}/{at}/{name}")
        at = at.rpartition("/")[0]
    yield from _limit(f"{root}/{name}")


def _limit(file: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # "max", or the group is hidden
        yield int(_read(file))


def _read(file: str) -> str:
    opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(opened, 2**16).decode()
    finally:
        os.close(opened)


def apply(limits: Limits, *, gpu: bool) -> None:
    """Set the limits that the kernel itself enforces, for this process and its descendants.

    Parameters:
        gpu: no limit on address space, since CUDA maps far more than it uses.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    if limits.memory_bytes is not None and not gpu:
        asked = limits.memory_bytes * _ASKED_SHARE + _ASKED_BYTES
        _lower(resource.RLIMIT_DATA, int(asked))
        _lower(resource.RLIMIT_AS, max(limits.memory_bytes * _SPACE_SHARE, _SPACE_BYTES))
    if limits.disk_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, limits.disk_bytes)
    if limits.cpu_s is not None:
        _lower(resource.RLIMIT_CPU, int(limits.cpu_s) + 1)
    if limits.processes is not None:
        _lower(resource.RLIMIT_NPROC, limits.processes)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(f"{_OOM_FIRST}")


def _lower(what: int, limit: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(what, (limit, limit))


def most_processes(limits: Limits) -> None:
    """Cap the process IDs of this PID namespace (Linux 6.14 and later).

    Raises:
        OSError
    """
    if limits.processes is not None:
        Path("/proc/sys/kernel/pid_max").write_text(f"{limits.processes}")
