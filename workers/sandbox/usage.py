"""What a job's processes use, looked at now and then: no limit of the kernel's covers all of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

#: Of a thread, beside its pages: what the kernel keeps of it, and its stack there. Of a descriptor: half
#: a pipe of two pages, which any user may have.
_THREAD_BYTES, _DESCRIPTOR_BYTES = 32 * 2**10, 4 * 2**10
_MANY_FILES = 200_000
#: Descriptors of all of a job's processes: a look at each takes time, in which nothing else is looked at.
_MANY_OPEN = 20_000
#: No stage makes folders so deep, and each level is held open while what is below it is counted.
_DEEPEST = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PRIVATE = ("RssAnon", "VmSwap", "VmPTE", "HugetlbPages")
_PRIVATE_FAIRLY = ("Pss_Anon", "SwapPss", "Private_Hugetlb", "Shared_Hugetlb")


class Uncounted(Exception):
    """It can't be told what is used, and no stage does what hides it."""


def memory_bytes(pids: Iterable[int], *, file_system: Path | None, most: int) -> int:
    """What processes use together, to compare with ``most``.

    Parameters:
        file_system: one in memory that is theirs alone; what lies there they use, mapped or not.
    """
    files = _held_in(file_system) if file_system else 0
    places = list(map(_place, pids))
    # The quick look counts for each what they share; only when that is too much a slow one follows.
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
    """Where the kernel tells of a process. Of one whose first thread has ended it does by another."""
    place = Path(f"/proc/{pid}")
    if "VmRSS" in _numbers(place / "status"):
        return place
    with suppress(OSError):
        for task in (place / "task").iterdir():
            if "VmRSS" in _numbers(task / "status"):
                return task
    return place


def _quickly(place: Path) -> tuple[int, int]:
    """What a process uses by itself, and what with others."""
    of = _numbers(place / "status")
    private = sum(of.get(name, 0) for name in _PRIVATE) * 1024
    return private + _in_kernel(place, of), of.get("RssShmem", 0) * 1024


def _fairly(place: Path) -> tuple[int, int]:
    """What is a process's own, and its part of what it shares."""
    kib = _numbers(place / "smaps_rollup")
    if "Pss_Anon" not in kib:
        return _quickly(place)  # it may not be looked at so closely, or has ended
    of = _numbers(place / "status")
    private = sum(kib.get(name, 0) for name in _PRIVATE_FAIRLY) + of.get("VmPTE", 0)
    return private * 1024 + _in_kernel(place, of), kib.get("Pss_Shmem", 0) * 1024


def _in_kernel(place: Path, of: dict[str, int]) -> int:
    descriptors = 0
    with suppress(OSError):
        descriptors = (place / "fd").stat().st_size  # before Linux 6.2, 0
    return of.get("Threads", 0) * _THREAD_BYTES + descriptors * _DESCRIPTOR_BYTES


def _numbers(file: Path) -> dict[str, int]:
    """The numbers in such a file, by name; none when its process has ended or hides it."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for line in _lines(file):
            name, _, value = line.partition(b":")
            with suppress(ValueError, IndexError):
                found[name.decode(errors="replace")] = int(value.split()[0])
    return found


def _lines(file: Path) -> list[bytes]:
    """Of what the kernel tells. Names in it are a stranger's, and may hold all that Python takes for the end
    of a line but this one.

    Raises:
        OSError
    """
    return file.read_bytes().split(b"\n")


def disk_bytes(folder: Path, pids: Iterable[int], *, most: int) -> int:
    """What a folder holds on its disk, with what processes hold there that has no name any more; more
    than ``most`` when that can't be counted."""
    try:
        return _Count().of(folder) + _nameless_bytes(folder, list(pids))
    except Uncounted:
        return most + 1


class _Count:
    """Goes through a folder by descriptors: a path ends at 4096 bytes, a folder doesn't."""

    def __init__(self) -> None:
        self._entries = 0
        self._files: set[int] = set()  #: with several names
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
                    held.append((below, []))  # to be closed, whatever counting it gives
                    held[-1][1].extend(self._count(below))
                    if len(held) > _DEEPEST:
                        raise Uncounted
        finally:
            for at, _ in held:
                os.close(at)

    def _count(self, folder: int) -> list[str]:
        """Count what is right in a folder; return the folders there."""
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
    """A folder, or None when it has gone.

    Raises:
        Uncounted: it can't be looked into.
    """
    for _ in range(2):
        try:
            return os.open(name, _FOLDER, dir_fd=at)
        except PermissionError:
            _let_in(name, at)
        except OSError:  # it has gone, or isn't one any more
            return None
    raise Uncounted


def _let_in(name: str, at: int) -> None:
    """Make a folder readable that was made so that it isn't."""
    with suppress(OSError):
        handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=at)
        try:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        finally:
            os.close(handle)


def _nameless_bytes(folder: Path, pids: list[int]) -> int:
    """What processes hold of a folder's disk that has no name.

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
    """Areas of memory that are files without a name: where they lie, and the files' numbers."""
    start = os.fsencode(folder).replace(b"\n", b"\\012") + b"/"
    with suppress(OSError):
        for line in _lines(place / "maps"):
            if line.endswith(b" (deleted)"):
                area, _, _, _, number, path = line.split(maxsplit=5)
                if path.startswith(start):
                    yield area.decode(), int(number)


def _mapped_bytes(place: Path, area: str) -> int:
    """What a file takes that is mapped and not open.

    Raises:
        Uncounted: only the superuser may see it, and no stage needs such a file.
    """
    try:
        return (place / "map_files" / area).stat().st_blocks * 512
    except FileNotFoundError:
        return 0  # it isn't mapped any more
    except OSError:
        raise Uncounted from None
