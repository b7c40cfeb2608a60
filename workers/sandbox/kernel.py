"""System calls that Python 3.11 doesn't wrap."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
#: All flags of clone() that create a namespace.
NEW_ANY = 0x7E020000

SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, CAPBSET_DROP = 1, 4, 22, 24
SET_SECUREBITS, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS, CAP_AMBIENT = 28, 36, 38, 47

MS_SLAVE, MS_REC, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1 << 19, 1 << 14, 2, 4, 8


def unshare(flags: int) -> None:
    """Move this process, or with ``NEWPID`` its future children, into new namespaces.

    Raises:
        OSError: the kernel or its configuration refuses.
    """
    _checked(_libc.unshare(flags), "unshare")


def prctl(option: int, *arguments: object) -> None:
    """Raises: OSError"""
    given = [*arguments, *[0] * (4 - len(arguments))]
    words = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in given]
    _checked(_libc.prctl(option, *words), f"prctl {option}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Raises: OSError"""
    words = [word.encode() for word in (source, target, kind)]
    done = _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    _checked(done, f"mount {target}")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CAPABILITY_VERSION_3 = 0x20080522


def set_capabilities(kept: int) -> None:
    """Set the effective, permitted and inheritable capabilities to exactly this mask.

    Raises:
        OSError
    """
    sets = (_Sets * 2)()
    for index in range(2):
        word = (kept >> (32 * index)) & 0xFFFFFFFF
        sets[index] = _Sets(word, word, word)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(ctypes.byref(header), sets), "capset")


def capabilities() -> int:
    """The mask of the capabilities that this process may use."""
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    _checked(_libc.capget(ctypes.byref(header), sets), "capget")
    return int(sets[0].effective | sets[1].effective << 32)


def wipe(start: int, end: int) -> None:
    """Overwrite this process's memory from one address to another."""
    ctypes.memset(start, 0, end - start)


def _checked(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
