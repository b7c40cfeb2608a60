"""The fork server: the process that jobs are forked from."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver

from workers.sandbox import environment

processes = multiprocessing.get_context("forkserver")


#: Imported first in the fork server.
_FIRST = "workers.sandbox.server"


#: Stages keep making and dropping copies of a model. By default glibc returns each to the kernel, and
#: the next one's pages are faulted in again, 4 KiB at a time: a third of a calibration's time.
#: Read when a process starts; other C libraries ignore it.
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
