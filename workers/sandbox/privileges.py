"""A job has no capabilities, can gain none, and isn't root where that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from workers.sandbox import kernel

#: UIDs that aren't assigned to people, services, systemd or containers:
#: https://systemd.io/UIDS-GIDS/
_FIRST_UID, _UIDS = 60_706, 478
#: Read and search regardless of permissions: for a user that is otherwise confined to a few files.
READ_SEARCH = 1 << 2
_READ_SEARCH_NUMBER = 2
#: Inspect another user's processes.
PTRACE = 1 << 19
_NO_ROOT_LOCKED = 0b11  #: UID 0 gains no capabilities, irreversibly
_KEEP_CAPS, _AMBIENT_RAISE = 8, 2
_LAST_CAPABILITY = 63


def give_up() -> None:
    """Drop all capabilities, and every way to regain one.

    Raises:
        OSError
    """
    _bound()
    kernel.set_capabilities(0)


def become(uid: int, *, reads_all: bool) -> None:
    """Become another user irreversibly, without groups or capabilities; with ``READ_SEARCH`` if it reads all.

    Raises:
        OSError
    """
    keep = READ_SEARCH if reads_all else 0
    _bound(keep)
    kernel.prctl(_KEEP_CAPS, int(reads_all))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.set_capabilities(keep)
    if reads_all:  # also for programs it starts
        kernel.prctl(kernel.CAP_AMBIENT, _AMBIENT_RAISE, _READ_SEARCH_NUMBER)


def _bound(keep: int = 0) -> None:
    if not kernel.capabilities():
        return
    for number in range(_LAST_CAPABILITY + 1):
        if not keep >> number & 1:
            with suppress(OSError):  # this kernel has fewer capabilities
                kernel.prctl(kernel.CAPBSET_DROP, number)
    with suppress(OSError):
        kernel.prctl(kernel.SET_SECUREBITS, _NO_ROOT_LOCKED)


def own_uid(slot: int) -> int:
    """A UID that nobody has."""
    return _FIRST_UID + slot % _UIDS


def can_be(uid: int) -> bool:
    """Whether root may take this UID here. A container may map only some."""
    try:
        os.setegid(uid)
        os.seteuid(uid)
    except OSError:
        return False
    finally:
        os.seteuid(0)
        os.setegid(0)
    return True


def can_use(uid: int, *, read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Whether that user, without groups, could read and write these. Only for root."""
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(uid)
        os.seteuid(uid)
        return _may(read, os.R_OK) and _may(write, os.R_OK | os.W_OK)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _may(paths: Iterable[Path], mode: int) -> bool:
    return all(os.access(one, mode, effective_ids=True) for one in paths)
