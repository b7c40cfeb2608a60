"""Limits which files a job may open, by Landlock: its inputs, the libraries, its work folder.

An unlisted file can't be opened, whatever its owner and permissions. ``stat`` and the names of the folders
above it aren't hidden.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import landlockpy
from landlockpy import AccessFS, Ruleset, Scope

from workers.sandbox.policy import Sandbox

_READ = AccessFS.READ_FILE | AccessFS.READ_DIR
_RUN = _READ | AccessFS.EXECUTE
_USE = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.IOCTL_DEV
_OF_FILES = _USE | AccessFS.EXECUTE | AccessFS.TRUNCATE
#: No pipes, devices or links, and sockets only for CUDA: the worker looks at what a job leaves here.
_WORK = (
    _READ
    | AccessFS.WRITE_FILE
    | AccessFS.TRUNCATE
    | AccessFS.MAKE_REG
    | AccessFS.MAKE_DIR
    | AccessFS.REMOVE_FILE
    | AccessFS.REMOVE_DIR
    | AccessFS.REFER
)
_SYSTEM = "/usr /lib /lib32 /lib64 /libx32 /bin /sbin /nix/store /gnu/store".split()
_READABLE = """
    /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/ld.so.preload /etc/localtime /etc/timezone
    /etc/nsswitch.conf /etc/passwd /etc/group /etc/os-release /etc/debian_version /etc/alternatives
    /etc/host.conf /etc/gai.conf /etc/locale.alias /etc/mime.types /etc/magic
    /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /proc/version /proc/filesystems /proc/loadavg
    /proc/uptime /proc/sys/vm/overcommit_memory /proc/sys/vm/max_map_count /proc/sys/kernel/osrelease
    /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max /proc/sys/kernel/cap_last_cap
    /sys/devices/system /sys/kernel/mm/transparent_hugepage /sys/kernel/mm/hugepages
    /dev/urandom /dev/random
""".split()
#: Not ``/dev/zero``: mapping and unmapping it keeps memory that no process is charged for.
_DEVICES = "/dev/null /dev/full".split()
#: For CUDA and NVML: the driver's devices, their attributes and their place on the bus.
_OF_GPU = """
    /proc/driver/nvidia /proc/driver/nvidia-uvm /proc/driver/nvidia-caps /proc/devices /proc/modules
    /proc/sys/kernel/numa_balancing /sys/bus/pci /sys/devices /sys/module/nvidia
    /sys/module/nvidia_uvm /etc/nvidia
""".split()


_MODULES = (".py", ".so", ".pth", ".dist-info", ".egg-info", ".zip")
_STARTED_IN = Path.cwd()  #: so was the worker
_INSTALLED_IN = ("site-packages", "dist-packages")


@cache  # a job may not make this call again
def abi() -> int:
    """This kernel's Landlock ABI version; 0 without Landlock."""
    try:
        return landlockpy.abi_version()
    except OSError:
        return 0


def restrict(sandbox: Sandbox, *, private_shm: bool) -> None:
    """Let this process and its descendants open only what the job needs, bind and connect nothing, and
    signal nobody outside. Irreversible.

    Parameters:
        private_shm: whether ``/dev/shm`` is private to this job.

    Raises:
        OSError: the kernel has no Landlock.
    """
    scopes = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL
    with Ruleset(scoped=scopes) as rules:
        for path, access in _rules(sandbox):
            with suppress(FileNotFoundError, NotADirectoryError):
                rules.allow_path(path, access if path.is_dir() else access & _OF_FILES)
        if private_shm:
            rules.allow_path("/dev/shm", _WORK)  # noqa: S108 - it is private
        rules.restrict()


def _rules(sandbox: Sandbox) -> Iterator[tuple[Path, AccessFS]]:
    yield sandbox.workdir, _WORK | (AccessFS.MAKE_SOCK if sandbox.gpu else AccessFS.NONE)
    for path in sandbox.reads:
        yield path, AccessFS.READ_FILE
    for path in (*libraries(), *sandbox.libraries):
        yield path, _RUN
    for path in _listed():
        yield path, AccessFS.READ_DIR
    for name in (*_READABLE, *(_OF_GPU if sandbox.gpu else ())):
        yield Path(name), _READ
    for name in _DEVICES:
        yield Path(name), _USE
    if sandbox.gpu:  # CUDA names its threads there and fails when it can't
        yield Path("/proc/self"), _READ | AccessFS.WRITE_FILE | AccessFS.TRUNCATE
    for path in devices() if sandbox.gpu else ():
        yield path, _USE | AccessFS.READ_DIR


def devices() -> list[Path]:
    """NVIDIA's device files."""
    return sorted(Path("/dev").glob("nvidia*"))


def libraries() -> tuple[Path, ...]:
    """Folders and files from which programs and modules are loaded."""
    return (*_installed(), *(one for path in _listed() for one in _importable(path)))


@cache
def _installed() -> tuple[Path, ...]:
    found = [
        *map(Path, _SYSTEM),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.exec_prefix),
        *map(Path, sysconfig.get_paths().values()),
        *_linked(),
        *_compilers(),
        *(Path(entry) for entry in sys.path if Path(entry).name in _INSTALLED_IN),
    ]
    whole = dict.fromkeys(one.resolve() for one in found if one.is_absolute() and one.exists())
    return tuple(one for one in whole if not any(up in whole for up in one.parents))


def _compilers() -> Iterator[Path]:
    """Compilers outside the usual places: ``torch.compile`` starts one."""
    for name in (os.environ.get("CC"), os.environ.get("CXX"), *"cc gcc g++ clang nvcc".split()):
        found = shutil.which(name) if name else None
        folder = Path(found).resolve().parent if found else None
        if folder is not None and folder.name == "bin" and folder.parent != Path.home():
            yield folder.parent


def _linked() -> Iterator[Path]:
    """Where the loader looks for shared libraries besides the usual places."""
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder.startswith("/"):
            yield Path(folder)
    for file in sorted(Path("/etc/ld.so.conf.d").glob("*.conf")):
        with suppress(OSError):
            lines = file.read_text(errors="replace").splitlines()
            yield from (Path(line.strip()) for line in lines if line.startswith("/"))


def _listed() -> list[Path]:
    """Folders of ``sys.path`` that may hold more than modules, such as a checkout.

    Python lists them to find modules. The folder that the worker was started in is on the path only because
    of ``python -m`` and may be anybody's home: it counts only if it contains the farm.
    """
    given = dict.fromkeys(Path(entry) for entry in sys.path if entry)
    return [path for path in given if _is_listed(path)]


@cache
def _is_listed(path: Path) -> bool:
    at = path.resolve()
    if at == _STARTED_IN and not (at / "farm" / "__init__.py").is_file():
        return False
    return (
        path.is_dir()
        and path.name not in _INSTALLED_IN
        and not any(at.is_relative_to(one) for one in _installed())
    )


@cache
def _importable(folder: Path) -> tuple[Path, ...]:
    """The modules and packages directly in a folder, and no other folders."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return ()
    return tuple(one for one in found if one.suffix in _MODULES or _is_package(one))


def _is_package(folder: Path) -> bool:
    return folder.name.isidentifier() and (
        (folder / "__init__.py").is_file() or any(folder.glob("*.py"))
    )
