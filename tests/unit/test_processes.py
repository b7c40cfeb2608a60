"""No process outlives its parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ORPHAN = """
import os, signal, sys, time
from farm.processes import die_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library that waits for a thread of its own
parent = int(sys.argv[1]) or os.getppid()
print(os.getpid(), flush=True)
die_with_parent(parent=parent)
time.sleep(600)
"""


#: Like Celery's warm shutdown, which may wait for ever for a broker that is gone.
HANGS = """
import os, signal, sys, time
from farm.processes import end_with_parent
def hang(*_):
    print("asked to end", flush=True)
    time.sleep(600)
signal.signal(signal.SIGTERM, hang)
print(os.getpid(), flush=True)
end_with_parent(int(sys.argv[1]) or os.getppid(), grace_s=0.1)
time.sleep(600)
"""


BETWEEN = """
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(orphan.stdout.readline(), flush=True)
"""


@pytest.mark.parametrize("orphan", [ORPHAN, HANGS], ids=["ignores it", "hangs"])
@pytest.mark.parametrize("parent", [0, 999999], ids=["dies later", "was dead already"])
def test_a_process_ends_with_its_parent_whatever_it_does_about_that(orphan, parent):
    command = [sys.executable, "-c", BETWEEN, orphan, str(parent)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=180)
    orphan = int(made.stdout)
    deadline = time.monotonic() + 120
    while _runs(orphan):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # In a container whose first process reaps nobody, it stays as a zombie.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"
    return state != "Z"


HIDING = """
import sys
from pathlib import Path
from farm.processes import hide_argument
hide_argument(sys.argv[2])
print(Path("/proc/self/cmdline").read_bytes().split(b"\\0")[-4:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels keep arguments elsewhere")
def test_a_secret_among_a_processs_arguments_isnt_shown_once_it_is_hidden():
    command = [sys.executable, "-c", HIDING, "--token", "join_secret", "--name"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=180)
    assert made.stdout.strip() == "[b'--token', b'xxxxxxxxxxx', b'--name', b'']"
