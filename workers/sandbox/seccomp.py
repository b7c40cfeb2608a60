"""Refuses system calls that no stage needs with EPERM, by a seccomp-BPF filter.

A deny-list, since the calls of CUDA, TensorRT and four frameworks change with each of their versions. It
removes calls that expose kernel faults or undo the other parts of the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Iterable, Iterator

from workers.sandbox import kernel

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  #: marks calls of the x32 ABI, which the numbers below aren't for
_COLUMNS = ("x86_64", "aarch64")
#: Name, number on x86-64, number on arm64; ``-`` where the call doesn't exist.
_REFUSED = """
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
    pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448, migrate_pages 256 238,
    mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
    mount_setattr 442 442, open_tree_attr 467 467, unshare 272 97, setns 308 268,
    statmount 457 457, listmount 458 458, listns 470 470,
    name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262,
    fanotify_mark 301 263, inotify_init 253 -, inotify_init1 294 26, inotify_add_watch 254 27,
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282,
    io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
    add_key 248 217, request_key 249 218, keyctl 250 219, kexec_load 246 104,
    kexec_file_load 320 294, init_module 175 105, finit_module 313 273, delete_module 176 106,
    seccomp 317 277, landlock_create_ruleset 444 444, landlock_add_rule 445 445,
    landlock_restrict_self 446 446, lsm_get_self_attr 459 459, lsm_set_self_attr 460 460,
    lsm_list_modules 461 461, get_robust_list 274 100,
    reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60,
    quotactl_fd 443 443, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171,
    clock_adjtime 305 266, sethostname 170 161, setdomainname 171 162, syslog 103 116,
    sync 162 81, syncfs 306 267, io_setup 206 0,
    personality 135 92, vhangup 153 58, lookup_dcookie 212 18, nfsservctl 180 42,
    iopl 172 -, ioperm 173 -, modify_ldt 154 -, uselib 134 -, sysfs 139 -, _sysctl 156 -,
    shmget 29 194, shmat 30 196, shmctl 31 195, semget 64 190, semop 65 193, semctl 66 191,
    semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
    mq_open 240 180, mq_unlink 241 181, memfd_create 319 279, memfd_secret 447 447,
    vmsplice 278 75, splice 275 76, tee 276 77, connect 42 203
"""
#: Calls that change a file not opened for writing: Landlock has no right for them, and where the worker
#: isn't root, its jobs own its files.
_REFUSED_OF_FILES = """
    chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55,
    lchown 94 -, fchownat 260 54, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
    setxattrat 463 463, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
    removexattrat 466 466, file_setattr 469 469, utime 132 -, utimes 235 -, futimesat 261 -,
    utimensat 280 88, truncate 76 45
"""
#: Calls that affect processes and threads other than by signals: a job needs none of them.
_REFUSED_OF_PROCESSES = """
    sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274, ioprio_set 251 30
"""
#: Refused to jobs that use no GPU. CUDA listens on a socket for its other processes. epoll watches are
#: limited per user, which the job shares with the farm where that isn't root: it could starve the API.
_REFUSED_WITHOUT_GPU = """
    socket 41 198, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
    socketpair 53 199, setsockopt 54 208, sendmsg 46 211, sendmmsg 307 269,
    pidfd_open 434 434, pidfd_send_signal 424 424,
    epoll_create 213 -, epoll_create1 291 20
"""
#: Answered with ENOSYS, since their arguments are in memory, where no filter can look: C libraries then
#: fall back to ``clone`` and ``openat``.
_UNKNOWN = "clone3 435 435, openat2 437 437"
#: Refused depending on their arguments.
_REFUSED_PARTLY = """
    clone 56 220, socketpair 53 199, socket 41 198, ioctl 16 29, fcntl 72 25, mmap 9 222, open 2 -,
    openat 257 56, prctl 157 167, prlimit64 302 261, setpriority 141 140, move_pages 279 239,
    sched_setaffinity 203 122
"""
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_KINDS = 1, 1, 5, 0xF
_THREAD, _SAME_FILES, _SIBLING = 0x10000, 0x400, 0x8000  #: flags of ``clone``
#: Typing into a terminal, copying from one, and directing a file's signals at other processes.
_TIOCSTI, _TIOCLINUX, _FIOASYNC, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x5452, 0x8901, 0x8902
#: ioctl letters of all file systems: they set attributes, verity and keys of files opened for reading.
_IOCTL_LETTERS, _OF_ATTRIBUTES = 0xFF00, (ord("f") << 8, ord("X") << 8)
#: A file's owner and signal, leases, watches, and a pipe's capacity.
_FCNTLS = {"F_SETOWN": 8, "F_SETSIG": 10, "F_SETOWN_EX": 15, "F_SETLEASE": 1024}
_FCNTLS |= {"F_NOTIFY": 1026, "F_SETPIPE_SZ": 1031}
#: Byte-range locks take unbounded kernel memory. ``flock`` doesn't.
_FCNTLS_WITHOUT_GPU = {"F_SETLK": 6, "F_SETLKW": 7, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38}
#: Memory that no process is charged for once it is unmapped.
_SHARED_ANONYMOUS = 0x01 | 0x20
#: Truncates a file that is opened for reading.
_O_ACCMODE_AND_TRUNC, _O_TRUNC = 0o1003, 0o1000
#: ``PR_SET_DUMPABLE`` hides a process from its guard.
_PRCTLS = (kernel.SET_DUMPABLE, kernel.SET_SECCOMP)

# From linux/bpf_common.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_FILTER_MODE = 2
_NUMBER, _ARCH = 0, 4
_Instruction = tuple[int, int, int, int]
_REFUSE: _Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)


def install(*, gpu: bool = False, sees_others: bool = False) -> None:
    """Refuse these calls to this process and its descendants. For a single-threaded process with
    ``no_new_privs`` set.

    Parameters:
        sees_others: whether the job shares the machine's PID namespace.

    Raises:
        OSError: the kernel lacks seccomp filters, or this processor's call numbers aren't known here.
    """
    lines = program(platform.machine(), gpu=gpu, sees_others=sees_others)
    made = b"".join(struct.pack("=HBBI", *one) for one in lines)
    code = ctypes.create_string_buffer(made, len(made))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(made) // 8, ctypes.addressof(code))
    kernel.prctl(kernel.SET_SECCOMP, _FILTER_MODE, ctypes.byref(given))


def program(machine: str, *, gpu: bool, sees_others: bool = False) -> list[_Instruction]:
    """Assemble the filter for a processor.

    Raises:
        OSError: its calls' numbers aren't known here.
    """
    if machine not in _AUDIT_ARCH or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
    return list(_program(machine, gpu=gpu, sees_others=sees_others))


def numbers(machine: str, *, gpu: bool) -> dict[str, int]:
    """The refused calls: name → number."""
    lists = [_REFUSED, _REFUSED_OF_FILES, _REFUSED_OF_PROCESSES]
    return _numbers(", ".join([*lists, *([] if gpu else [_REFUSED_WITHOUT_GPU])]), machine)


def _numbers(text: str, machine: str) -> dict[str, int]:
    rows = (row.split() for row in text.split(","))
    column = 1 + _COLUMNS.index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _program(machine: str, *, gpu: bool, sees_others: bool) -> Iterator[_Instruction]:
    # Programs for another call table, such as 32-bit ones, would evade the numbers below.
    yield _LOAD, 0, 0, _ARCH
    yield _EQUAL, 1, 0, _AUDIT_ARCH[machine]
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _errno(errno.ENOSYS)
    for number in numbers(machine, gpu=gpu).values():
        yield _EQUAL, 0, 1, number
        yield _REFUSE
    for number in _numbers(_UNKNOWN, machine).values():
        yield _EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _errno(errno.ENOSYS)
    partly = _numbers(_REFUSED_PARTLY, machine)
    for name, lines in _by_arguments(gpu=gpu, sees_others=sees_others):
        if name in partly:
            yield _EQUAL, 0, len(lines) + 1, partly[name]
            yield from lines
            yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _ALLOW


def _by_arguments(*, gpu: bool, sees_others: bool) -> Iterator[tuple[str, list[_Instruction]]]:
    """Yield the calls refused for some arguments only, with the test. All other arguments are allowed."""
    # A sibling would be the guard's child, and threads with a separate descriptor table would hide theirs.
    threads = [(_AND, 0, 0, _THREAD | _SAME_FILES), *_refuse_any([_THREAD])]
    yield "clone", [_load(0), (_ANY_BIT, 0, 1, kernel.NEW_ANY | _SIBLING), _REFUSE, *threads]
    # Unix sockets only, and streams: a datagram socket could name any address in each send.
    for name in ("socketpair", "socket") if gpu else ():
        yield (
            name,
            [
                _load(0),
                (_EQUAL, 1, 0, _AF_UNIX),
                _REFUSE,
                _load(1),
                (_AND, 0, 0, _SOCK_KINDS),
                (_EQUAL, 2, 0, _SOCK_STREAM),
                (_EQUAL, 1, 0, _SOCK_SEQPACKET),
                _REFUSE,
            ],
        )
    commands = (_TIOCSTI, _TIOCLINUX, _FIOASYNC, _FIOSETOWN, _SIOCSPGRP)
    letters = [(_AND, 0, 0, _IOCTL_LETTERS), *_refuse_any(_OF_ATTRIBUTES)]
    yield "ioctl", [_load(1), *_refuse_any(commands), *letters]
    changes = _FCNTLS if gpu else _FCNTLS | _FCNTLS_WITHOUT_GPU
    yield "fcntl", [_load(1), *_refuse_any(changes.values())]
    # CUDA needs some of it to start.
    shared = [_load(3), (_AND, 0, 0, _SHARED_ANONYMOUS), *_refuse_any([_SHARED_ANONYMOUS])]
    if not gpu:
        yield "mmap", shared
    for name, argument in (("open", 1), ("openat", 2)):
        masked = (_AND, 0, 0, _O_ACCMODE_AND_TRUNC)
        yield name, [_load(argument), masked, *_refuse_any([_O_TRUNC])]
    yield "prctl", [_load(0), *_refuse_any(_PRCTLS)]
    # Only this process's own.
    of_others = [(_EQUAL, 1, 0, 0), _REFUSE]
    yield "prlimit64", [_load(0), *of_others]
    yield "move_pages", [_load(0), *of_others]
    yield "setpriority", [_load(0), *of_others, _load(1), *of_others]
    if sees_others:  # otherwise a PID can only be one of the job's own threads
        yield "sched_setaffinity", [_load(0), *of_others]


def _refuse_any(values: Iterable[int]) -> list[_Instruction]:
    return [line for value in values for line in ((_EQUAL, 0, 1, value), _REFUSE)]


def _load(argument: int) -> _Instruction:
    return _LOAD, 0, 0, _argument(argument)


def _errno(number: int) -> int:
    return 0x00050000 | number


def _argument(index: int) -> int:
    """The offset of an argument's lower half, on processors that write it first."""
    return 16 + 8 * index
