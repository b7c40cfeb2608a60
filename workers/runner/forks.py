"""The process that jobs are forked from."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver

from workers.sandbox import environment

processes = multiprocessing.get_context("forkserver")


#: Imported first where jobs are forked from.
_FIRST = "workers.sandbox.server"


#: Stages make and drop copies of a model all the time. By default glibc gives each back to the kernel,
#: and the next one's pages are faulted in again, 4 KiB at a time: a third of a calibration's time.
#: Read at a process's start; other C libraries don't know it.
_MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_threshold": 2**30,
        "trim_threshold": 2**32,
        "top_pad": 2**26,
    }.items()
)


def preload(modules: list[str]) -> None:
    """Start the fork server with these modules imported; children then start in milliseconds."""
    os.environ.setdefault("GLIBC_TUNABLES", _MALLOC)
    processes.set_forkserver_preload([_FIRST, *modules])
    with environment.allowed_only(environment.more()):
        forkserver.ensure_running()
