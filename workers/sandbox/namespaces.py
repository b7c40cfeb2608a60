"""Networks, processes and shared memory of a job's own.

The process that jobs are forked from leaves the machine's network once; a job's process then only leaves
the machine's processes. Where the worker isn't the superuser, it is one in a namespace of users first,
which gives no right over anything outside.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.sandbox import kernel

SHM = Path("/dev/shm")  # noqa: S108
_SHM_BYTES, _SHM_FILES = 256 * 2**20, 4096


@dataclass(kw_only=True)
class _Left:
    """What this process, or the one that it was forked from, has left."""

    network: str = "it wasn't tried"  #: why not; empty when it has


left = _Left()


def leave_network() -> None:
    """Be in a network without any interface, and in an own space of System V's IPC. For a process of one
    thread. Whether it could, ``left.network`` says."""
    try:
        kernel.unshare(kernel.NEWNET | kernel.NEWIPC)
    except OSError as err:
        try:
            _become_root_of_nothing()
            kernel.unshare(kernel.NEWNET | kernel.NEWIPC)
        except OSError:
            left.network = str(err)
            return
    left.network = ""


def _become_root_of_nothing() -> None:
    """Have all capabilities in a namespace that holds nothing; be the same user outside of it."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """A namespace of processes: when its first one ends, the kernel ends all the others."""

    first: int  #: its process ID outside
    lifeline: int  #: a pipe; the first ends when its last writer has ended

    def kill(self) -> None:
        """End all of them."""
        os.kill(self.first, signal.SIGKILL)

    def close(self) -> None:
        """To be called when the first has been waited for."""
        os.close(self.lifeline)


def own_processes() -> Processes:
    """Let the children that this process has from now on be alone in a namespace.

    Its first process is ``cat``: it reads from this process until that ends, however it does, and the
    kernel ignores what a job sends to it.

    Raises:
        OSError: the kernel refuses, or there is no ``cat``.
    """
    program = shutil.which("cat", path=f"{os.defpath}:/usr/bin:/bin")
    if program is None:
        raise FileNotFoundError("there is no program cat")
    kernel.unshare(kernel.NEWPID)
    read, write = os.pipe()
    # Whatever loses its parent there goes to cat, which takes no notice: the kernel cleans up.
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        first = os.posix_spawn(
            program,
            ["cat"],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,
        )
    finally:
        signal.signal(signal.SIGCHLD, before)
        os.close(read)
    return Processes(first=first, lifeline=write)


def own_shared_memory() -> bool:
    """Have a ``/dev/shm`` that is empty, small and ends with this process and its children, in a space of
    mounts of their own. Return whether that could be."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    options = f"size={_SHM_BYTES},nr_inodes={_SHM_FILES},mode=1777"
    try:
        _own_mounts()
        kernel.mount("tmpfs", str(SHM), "tmpfs", flags, options)
    except OSError:
        return False
    return True


def own_view_of_processes() -> None:
    """In a namespace of processes, have a ``/proc`` that knows them by the numbers that they have there:
    CUDA looks up its threads so."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with suppress(OSError):  # as in a container that hides some of it
        _own_mounts()
        kernel.mount("proc", "/proc", "proc", flags)


def _own_mounts() -> None:
    kernel.unshare(kernel.NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
