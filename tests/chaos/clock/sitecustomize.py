"""Python imports this by itself, with this folder on PYTHONPATH: a process' clock that can be put.

The file that FARM_CHAOS_CLOCK names holds how many seconds it is off, as a double. All processes
that have the same file have the same clock, as those of one machine do. Only ``time.time`` lies:
nothing in the farm may ask for the time in another way, and what the system stamps is right.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

_OFF = struct.Struct("d")


def _put() -> None:
    with open(os.environ["FARM_CHAOS_CLOCK"], "rb") as file:
        offset = mmap.mmap(file.fileno(), _OFF.size, prot=mmap.PROT_READ)
    true = time.time
    time.time = lambda: true() + _OFF.unpack(offset)[0]


if "FARM_CHAOS_CLOCK" in os.environ:
    _put()
