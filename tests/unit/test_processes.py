"""No process outlives its parent."""

import os
import subprocess
import sys
import time

import pytest

ORPHAN = """
import os, signal, sys, time
from farm.processes import die_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library that waits for a thread of its own
parent = int(sys.argv[1]) or os.getppid()
print(os.getpid(), flush=True)
die_with_parent(parent=parent)
time.sleep(60)
"""


BETWEEN = """
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(orphan.stdout.readline(), flush=True)
"""


@pytest.mark.parametrize("parent", [0, 999999], ids=["dies later", "was dead already"])
def test_a_process_that_ignores_the_death_of_its_parent_ends_all_the_same(parent):
    command = [sys.executable, "-c", BETWEEN, ORPHAN, str(parent)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    orphan = int(made.stdout)
    deadline = time.monotonic() + 20
    while True:
        try:
            os.kill(orphan, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)
