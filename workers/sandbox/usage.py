"""Polls what a job's processes use: no kernel limit covers all of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

#: Kernel memory per thread, including its kernel stack, and per descriptor: half of a two-page pipe, which
#: any user may have.
_THREAD_BYTES, _DESCRIPTOR_BYTES = 32 * 2**10, 4 * 2**10
_MANY_FILES = 200_000
#: Limit on all descriptors of a job: checking each takes time, during which nothing else is checked.
_MANY_OPEN = 20_000
#: No stage nests folders this deep, and each level stays open while the levels below are counted.
_DEEPEST = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PRIVATE = ("RssAnon", "VmSwap", "VmPTE", "HugetlbPages")
_PRIVATE_FAIRLY = ("Pss_Anon", "SwapPss", "Private_Hugetlb", "Shared_Hugetlb")


class Uncounted(Exception):
    """Usage can't be determined, and no stage does anything that hides it."""


def memory_bytes(pids: Iterable[int], *, file_system: Path | None, most: int) -> int:
    """Memory that processes use together, to compare with ``most``.

    Parameters:
        file_system: a private in-memory file system; its files count whether mapped or not.
    """
    files = _held_in(file_system) if file_system else 0
    places = list(map(_place, pids))
    # The quick pass counts shared memory once per process; only if that is too much, a slow pass follows.
    used = _together(map(_quickly, places), files)
    return used if used <= most else _together(map(_fairly, places), files)


def _together(uses: Iterable[tuple[int, int]], files: int) -> int:
    own, shared = 0, 0
    for one, other in uses:
        own, shared = own + one, shared + other
    return own + max(shared, files)


def _held_in(file_system: Path) -> int:
    found = os.statvfs(file_system)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _place(pid: int) -> Path:
    """A process's folder in ``/proc``, or a live thread's if its first thread has ended."""
    place = Path(f"/proc/{pid}")
    if "VmRSS" in _numbers(place / "status"):
        return place
    with suppress(OSError):
        for task in (place / "task").iterdir():
            if "VmRSS" in _numbers(task / "status"):
                return task
    return place


def _quickly(place: Path) -> tuple[int, int]:
    """A process's private and shared memory."""
    of = _numbers(place / "status")
    private = sum(of.get(name, 0) for name in _PRIVATE) * 1024
    return private + _in_kernel(place, of), of.get("RssShmem", 0) * 1024


def _fairly(place: Path) -> tuple[int, int]:
    """A process's private memory, and its proportional part of shared memory."""
    kib = _numbers(place / "smaps_rollup")
    if "Pss_Anon" not in kib:
        return _quickly(place)  # not allowed to read this, or the process has ended
    of = _numbers(place / "status")
    private = sum(kib.get(name, 0) for name in _PRIVATE_FAIRLY) + of.get("VmPTE", 0)
    return private * 1024 + _in_kernel(place, of), kib.get("Pss_Shmem", 0) * 1024


def _in_kernel(place: Path, of: dict[str, int]) -> int:
    descriptors = 0
    with suppress(OSError):
        descriptors = (place / "fd").stat().st_size  # before Linux 6.2, 0
    return of.get("Threads", 0) * _THREAD_BYTES + descriptors * _DESCRIPTOR_BYTES


def _numbers(file: Path) -> dict[str, int]:
    """The numbers in a ``/proc`` file by name; empty when its process has ended or hides it."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for line in _lines(file):
            name, _, value = line.partition(b":")
            with suppress(ValueError, IndexError):
                found[name.decode(errors="replace")] = int(value.split()[0])
    return found


def _lines(file: Path) -> list[bytes]:
    """Lines of a ``/proc`` file. Names in it are untrusted, and may contain everything that Python takes for
    the end of a line except ``\\n``.

    Raises:
        OSError
    """
    return file.read_bytes().split(b"\n")


def disk_bytes(folder: Path, pids: Iterable[int], *, most: int) -> int:
    """Disk space of a folder, including deleted files that processes hold open; more than ``most`` when it
    can't be counted."""
    try:
        return _Count().of(folder) + _nameless_bytes(folder, list(pids))
    except Uncounted:
        return most + 1


class _Count:
    """Walks a folder by descriptors: a path is limited to 4096 bytes, nesting isn't."""

    def __init__(self) -> None:
        self._entries = 0
        self._files: set[int] = set()  #: files with several links
        self._bytes = 0

    def of(self, folder: Path) -> int:
        """Raises: Uncounted"""
        with suppress(FileNotFoundError):
            self._go_through(os.open(folder, _FOLDER))
        return self._bytes

    def _go_through(self, top: int) -> None:
        held = [(top, self._count(top))]
        try:
            while held:
                at, folders = held[-1]
                if not folders:
                    os.close(at)
                    held.pop()
                elif (below := _opened(folders.pop(), at)) is not None:
                    held.append((below, []))  # closed later, even if counting fails
                    held[-1][1].extend(self._count(below))
                    if len(held) > _DEEPEST:
                        raise Uncounted
        finally:
            for at, _ in held:
                os.close(at)

    def _count(self, folder: int) -> list[str]:
        """Count a folder's direct files; return its subfolders."""
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > _MANY_FILES:
                    raise Uncounted
                with suppress(FileNotFoundError):
                    self._add(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
        return folders

    def _add(self, found: os.stat_result) -> None:
        if found.st_nlink > 1 and stat.S_ISREG(found.st_mode):
            if found.st_ino in self._files:
                return
            self._files.add(found.st_ino)
        self._bytes += found.st_blocks * 512


def _opened(name: str, at: int) -> int | None:
    """Open a folder; None when it is gone.

    Raises:
        Uncounted: it can't be read.
    """
    for _ in range(2):
        try:
            return os.open(name, _FOLDER, dir_fd=at)
        except PermissionError:
            _let_in(name, at)
        except OSError:  # it is gone, or no longer a folder
            return None
    raise Uncounted


def _let_in(name: str, at: int) -> None:
    """Make a folder readable that was made unreadable."""
    with suppress(OSError):
        handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=at)
        try:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        finally:
            os.close(handle)


def _nameless_bytes(folder: Path, pids: list[int]) -> int:
    """Disk space of deleted files on a folder's disk that processes hold open.

    Raises:
        Uncounted
    """
    device = folder.stat().st_dev
    places = list(map(_place, pids))
    held: dict[int, int] = {}
    for found in _open_files(places):
        if found.st_dev == device and found.st_nlink == 0:
            held[found.st_ino] = found.st_blocks * 512
    for place in places:
        for area, number in _nameless_areas(place, folder):
            if number not in held:
                held[number] = _mapped_bytes(place, area)
    return sum(held.values())


def _open_files(places: Iterable[Path]) -> Iterator[os.stat_result]:
    seen = 0
    for place in places:
        with suppress(OSError), os.scandir(place / "fd") as entries:
            for entry in entries:
                seen += 1
                if seen > _MANY_OPEN:
                    raise Uncounted
                with suppress(OSError):
                    yield entry.stat()


def _nameless_areas(place: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Mapped deleted files: each mapping's address range and the file's inode."""
    start = os.fsencode(folder).replace(b"\n", b"\\012") + b"/"
    with suppress(OSError):
        for line in _lines(place / "maps"):
            if line.endswith(b" (deleted)"):
                area, _, _, _, number, path = line.split(maxsplit=5)
                if path.startswith(start):
                    yield area.decode(), int(number)


def _mapped_bytes(place: Path, area: str) -> int:
    """Disk space of a file that is mapped and not open.

    Raises:
        Uncounted: only the superuser may see it, and no stage needs such a file.
    """
    try:
        return (place / "map_files" / area).stat().st_blocks * 512
    except FileNotFoundError:
        return 0  # no longer mapped
    except OSError:
        raise Uncounted from None
