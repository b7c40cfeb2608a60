"""Private network, processes and shared memory for a job.

The fork server leaves the machine's network once, so a job only has to leave its PID namespace. Where the
worker isn't root, the process first becomes root of a user namespace, which gives no rights over anything
outside it.
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
    """Which namespaces this process, or the one it was forked from, has left."""

    network: str = "it wasn't tried"  #: why it hasn't; empty when it has


left = _Left()


def leave_network() -> None:
    """Enter a network namespace without interfaces, and a new System V IPC namespace. For a single-threaded
    process. ``left.network`` says whether it worked."""
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
    """Gain all capabilities in an empty user namespace; stay the same user outside it."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """A PID namespace: when its first process ends, the kernel kills all the others."""

    first: int  #: its PID outside
    lifeline: int  #: a pipe; the first process ends with the pipe's last writer

    def kill(self) -> None:
        """Kill all of them."""
        os.kill(self.first, signal.SIGKILL)

    def close(self) -> None:
        """Release the pipe. Call it once the first process has been reaped."""
        os.close(self.lifeline)


def own_processes() -> Processes:
    """Put this process's future children into their own PID namespace.

    Its first process is ``cat``, which reads from this process until it ends, however that happens. The
    kernel discards signals from a job to it.

    Raises:
        OSError: the kernel refuses, or ``cat`` is missing.
    """
    program = shutil.which("cat", path=f"{os.defpath}:/usr/bin:/bin")
    if program is None:
        raise FileNotFoundError("there is no program cat")
    kernel.unshare(kernel.NEWPID)
    read, write = os.pipe()
    # Orphans there are reparented to cat, which ignores them: the kernel reaps them.
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
    """Mount an empty, small ``/dev/shm`` in a new mount namespace; it goes away with this process and its
    children. Return whether it worked."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    options = f"size={_SHM_BYTES},nr_inodes={_SHM_FILES},mode=1777"
    try:
        _own_mounts()
        kernel.mount("tmpfs", str(SHM), "tmpfs", flags, options)
    except OSError:
        return False
    return True


def own_view_of_processes() -> None:
    """In a PID namespace, mount a ``/proc`` with the namespace's own PIDs: CUDA looks up its threads
    there."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with suppress(OSError):  # refused in a container that hides parts of /proc
        _own_mounts()
        kernel.mount("proc", "/proc", "proc", flags)


def _own_mounts() -> None:
    kernel.unshare(kernel.NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
