"""Prepares the fork server: imported there before anything else.

It erases its worker's environment and leaves the network before libraries start threads, and stops jobs
of the same user from inspecting it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from workers.sandbox import environment, files, kernel, namespaces
from workers.sandbox.features import Mode

if os.environ.get("FARM_SANDBOX") != Mode.OFF:
    environment.forget(environment.more())
    namespaces.leave_network()
    # Once here instead of in each job: the first call starts a program to find the C library.
    files.abi()
    files.libraries()
    with suppress(OSError):
        kernel.prctl(kernel.SET_DUMPABLE, 0)
