"""The process that jobs are forked from, first of all: imported there before anything else is.

It forgets its worker's environment and leaves the network before libraries start threads, and no job of
the same user may look into it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from workers.sandbox import environment, files, kernel, namespaces
from workers.sandbox.features import Mode

if os.environ.get("FARM_SANDBOX") != Mode.OFF:
    environment.forget(environment.more())
    namespaces.leave_network()
    # Once, and not in each job: the first finds the C library by starting a program.
    files.abi()
    files.libraries()
    with suppress(OSError):
        kernel.prctl(kernel.SET_DUMPABLE, 0)
