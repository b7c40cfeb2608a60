"""System calls that no stage needs, refused with EPERM: a filter in the kernel, in its own small language.

A list of what is refused, since what CUDA, TensorRT and four frameworks call changes with each of their
versions. It takes away what makes a fault in the kernel reachable, or undoes the other parts.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Iterator

from workers.sandbox import kernel

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  #: x86-64's other table of calls, which the names below aren't of
_COLUMNS = ("x86_64", "aarch64")
#: Name, number on x86-64, number on arm64; ``-`` where there is none.
_REFUSED = """
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
    pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448, migrate_pages 256 238,
    mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
    mount_setattr 442 442, open_tree_attr 467 467, unshare 272 97, setns 308 268,
    name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262,
    fanotify_mark 301 263, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282,
    io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
    add_key 248 217, request_key 249 218, keyctl 250 219, kexec_load 246 104,
    kexec_file_load 320 294, init_module 175 105, finit_module 313 273, delete_module 176 106,
    reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60,
    quotactl_fd 443 443, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171,
    clock_adjtime 305 266, sethostname 170 161, setdomainname 171 162, syslog 103 116,
    personality 135 92, vhangup 153 58, lookup_dcookie 212 18, nfsservctl 180 42,
    iopl 172 -, ioperm 173 -, modify_ldt 154 -, uselib 134 -, sysfs 139 -, _sysctl 156 -,
    shmget 29 194, shmat 30 196, shmctl 31 195, semget 64 190, semop 65 193, semctl 66 191,
    semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
    mq_open 240 180, mq_unlink 241 181, memfd_create 319 279, memfd_secret 447 447, connect 42 203
"""
#: Refused to jobs that use no GPU. CUDA listens on a socket for others of its processes.
_REFUSED_WITHOUT_GPU = """
    socket 41 198, bind 49 200, listen 50 201, accept 43 202, accept4 288 242
"""
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_IOCTL = {"x86_64": 16, "aarch64": 29}
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_KINDS = 1, 1, 5, 0xF
#: Typing into a terminal, and copying from one.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# Of linux/bpf_common.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_FILTER_MODE = 2
_NUMBER, _ARCH = 0, 4
_Instruction = tuple[int, int, int, int]


def install(*, gpu: bool = False) -> None:
    """Refuse these calls to this process and to all that it starts. For a process of one thread, which
    has given up new privileges.

    Raises:
        OSError: the kernel has no filters, or knows none for this machine's processor.
    """
    made = b"".join(struct.pack("=HBBI", *one) for one in program(platform.machine(), gpu=gpu))
    code = ctypes.create_string_buffer(made, len(made))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(made) // 8, ctypes.addressof(code))
    kernel.prctl(kernel.SET_SECCOMP, _FILTER_MODE, ctypes.byref(given))


def program(machine: str, *, gpu: bool) -> list[_Instruction]:
    """The filter for a processor.

    Raises:
        OSError: its calls' numbers aren't known here.
    """
    if machine not in _AUDIT_ARCH or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
    return list(_program(machine, gpu=gpu))


def numbers(machine: str, *, gpu: bool) -> dict[str, int]:
    """The refused calls' numbers by their names."""
    text = _REFUSED if gpu else f"{_REFUSED}, {_REFUSED_WITHOUT_GPU}"
    rows = (row.split() for row in text.split(","))
    column = 1 + _COLUMNS.index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _program(machine: str, *, gpu: bool) -> Iterator[_Instruction]:
    refused = (_RETURN, 0, 0, _errno(errno.EPERM))
    # Programs of another processor's table, as 32-bit ones, would pass by the numbers below.
    yield _LOAD, 0, 0, _ARCH
    yield _EQUAL, 1, 0, _AUDIT_ARCH[machine]
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _errno(errno.ENOSYS)
    for number in numbers(machine, gpu=gpu).values():
        yield _EQUAL, 0, 1, number
        yield refused
    # Its flags are in memory, where no filter can look: C libraries then take clone().
    yield _EQUAL, 0, 1, _CLONE3
    yield _RETURN, 0, 0, _errno(errno.ENOSYS)
    yield _EQUAL, 0, 4, _CLONE[machine]
    yield _LOAD, 0, 0, _argument(0)
    yield _ANY_BIT, 0, 1, kernel.NEW_ANY
    yield refused
    yield _RETURN, 0, 0, _ALLOW
    # Of this machine, and streams: one of datagrams could name any address when it sends.
    for number in (_SOCKETPAIR[machine], *([_SOCKET[machine]] if gpu else ())):
        yield _EQUAL, 0, 8, number
        yield _LOAD, 0, 0, _argument(0)
        yield _EQUAL, 0, 5, _AF_UNIX
        yield _LOAD, 0, 0, _argument(1)
        yield _AND, 0, 0, _SOCK_KINDS
        yield _EQUAL, 1, 0, _SOCK_STREAM
        yield _EQUAL, 0, 1, _SOCK_SEQPACKET
        yield _RETURN, 0, 0, _ALLOW
        yield refused
    yield _EQUAL, 0, 4, _IOCTL[machine]
    yield _LOAD, 0, 0, _argument(1)
    yield _EQUAL, 1, 0, _TIOCSTI
    yield _EQUAL, 0, 1, _TIOCLINUX
    yield refused
    yield _RETURN, 0, 0, _ALLOW


def _errno(number: int) -> int:
    return 0x00050000 | number


def _argument(index: int) -> int:
    """The offset of an argument's lower half, on processors that write it first."""
    return 16 + 8 * index
