"""Arbitrary code in a job's process finds nothing to take: no file, no server, no secret, no right.

Each function here runs in a child as a stage does, and does its worst. What a kernel can't enforce is
skipped with the reason; that a worker tells so is tested too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.sandboxed import ROOT, outcome, run
from workers.runner.inside import FOUND
from workers.sandbox import Feature


def opens(paths, _link):
    return {path: outcome(Path(path).read_text) for path in paths}


def test_a_job_reads_its_inputs_and_nothing_else_of_the_farm(box, tmp_path, needs):
    needs(Feature.FILES)
    database = tmp_path / "farm.db"
    database.write_text("all of it")
    asked = [*box.reads, tmp_path / "a store" / "other", database, Path("/etc/shadow")]
    asked += [
        Path.home() / ".bashrc",
        Path("/proc/1/environ"),
        Path(f"/proc/{os.getpid()}/environ"),
    ]
    asked += [Path(f"/proc/{os.getpid()}/cmdline"), Path("/proc/kallsyms")]
    read, _ = run(opens, [str(one) for one in asked], box)
    assert read.pop(str(box.reads[0])) == '"the job\'s own"'
    told = {value for path, value in read.items() if Path(path).exists()}
    assert told <= {"PermissionError", "FileNotFoundError"}, told  # others' processes aren't there
    assert read.keys() > {str(database)}


def writes(paths, _link):
    return {path: outcome(lambda path=path: Path(path).write_text("mine")) for path in paths}


def test_a_job_writes_in_its_folder_alone(box, tmp_path, needs):
    needs(Feature.FILES)
    mine = box.workdir / "made"
    asked = [mine, *box.reads, tmp_path / "new", Path("/tmp/taken"), Path("/dev/shm/x")]
    wrote, _ = run(writes, [str(one) for one in asked], box)
    assert wrote.pop(str(mine)) == "4"
    wrote.pop("/dev/shm/x")  # there it may, in one of its own
    assert set(wrote.values()) == {"PermissionError"}
    assert box.reads[0].read_text() == "the job's own"
    assert not Path("/dev/shm/x").exists()


def makes_strange_files(other, _link):
    Path("mine").touch()
    return {
        "link": outcome(lambda: Path("link").symlink_to(other)),
        "hard link": outcome(lambda: os.link(other, "hard")),
        "pipe": outcome(lambda: os.mkfifo("pipe")),
        "device": outcome(lambda: os.mknod("null", 0o600 | 0o020000, os.makedev(1, 3))),
        "moved in": outcome(lambda: Path(other).rename("theirs")),
        "moved out": outcome(lambda: Path("mine").rename(Path(other).with_name("x"))),
    }


def test_a_job_leaves_files_and_folders_behind_and_nothing_that_leads_elsewhere(box, needs):
    needs(Feature.FILES)
    other = box.reads[0].with_name("other")
    made, _ = run(makes_strange_files, str(other), box)
    assert all(value in ("PermissionError", "OSError") for value in made.values()), made
    assert other.read_text() == "somebody else's"


def reaches(argument, _link):
    kinds = {
        "tcp": lambda: socket.create_connection(("127.0.0.1", argument["port"]), 5),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(
            b"x", ("127.0.0.1", argument["port"])
        ),
        "tcp6": lambda: socket.socket(socket.AF_INET6),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "file": lambda: _connected(argument["file"]),
        "name": lambda: _connected(argument["name"]),
        "datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(
            b"x", argument["file"]
        ),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    }
    return {kind: outcome(attempt) for kind, attempt in kinds.items()}


def _connected(address):
    made = socket.socket(socket.AF_UNIX)
    made.connect(address)
    return made


def test_a_job_reaches_no_server_of_this_machine_in_any_way(box, tmp_path, needs):
    needs(Feature.NETWORK)
    name = f"\0farm-{os.getpid()}"
    file = f"/tmp/farm-{os.getpid()}.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as by_file,
        socket.socket(socket.AF_UNIX) as by_name,
    ):
        try:
            by_file.bind(file)
            by_name.bind(name)
            by_file.listen()
            by_name.listen()
            argument = {"port": tcp.getsockname()[1], "file": file, "name": name}
            reached, _ = run(reaches, argument, box)
        finally:
            Path(file).unlink(missing_ok=True)
    assert set(reached.values()) == {"PermissionError"}, reached


def looks_for_secrets(_argument, _link):
    """What is left of the worker's in this process: its surroundings, its descriptors, its memory."""
    gc.unfreeze()  # what the fork server has set aside
    strings = [one for one in gc.get_objects() if isinstance(one, dict)]
    held = [value for one in strings for value in list(one.values()) if isinstance(value, str)]
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(str(entry.readlink()))
    return {
        "environment": dict(os.environ),
        "block": Path("/proc/self/environ").read_bytes().decode(errors="replace"),
        "held": [one for one in held if re.search("farm:h[u]nter2@", one)],
        "descriptors": sorted(links),
        "processes": outcome(lambda: [one.name for one in Path("/proc").iterdir()]),
        # In a form that isn't itself what it looks for.
        "memory": _memory_has(rb"farm:h[u]nter2@"),
    }


def _memory_has(pattern):
    """How often a pattern of bytes is in what this process has written to its memory."""
    wanted, found = re.compile(pattern), 0
    areas = Path("/proc/self/maps").read_text().splitlines()
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in areas:
            area, rights = line.split()[:2]
            start, end = (int(part, 16) for part in area.split("-"))
            if not rights.startswith("rw") or end - start > 1 << 28:
                continue
            with suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                found += len(wanted.findall(memory.read(end - start)))
    return found


SECRETIVE = """
import json, sys
from pathlib import Path
from tests.integration import test_sandbox as t
from workers.runner.forks import preload
from workers.sandbox import Limits, Sandbox
if __name__ == "__main__":
    preload([])
    work = Path(sys.argv[1])
    box = Sandbox(workdir=work, reads=(), limits=Limits.of_machine(work, slots=2, timeout_s=60))
    print(json.dumps(t.run(t.looks_for_secrets, None, box)[0]))
"""


def test_a_job_finds_no_secret_of_its_worker(tmp_path, needs):
    needs(Feature.SECRETS)
    # This module is in the child's memory, too: so it doesn't hold what is looked for.
    word = "".join(reversed("2retnuh:mraf"))
    secrets = {
        "FARM_DATABASE_URL": f"postgresql://{word}@db/farm",
        "FARM_BROKER_URL": f"redis://{word}@broker/0",
        "AWS_SECRET_ACCESS_KEY": f"{word}@aws",
        "HF_TOKEN": f"{word}@hf",
        "TORCH_TOKEN": f"{word}@torch",
    }
    done = subprocess.run(
        [sys.executable, "-c", SECRETIVE, tmp_path],
        env=os.environ | secrets | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    assert not set(found["environment"]) & set(secrets)
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert found["environment"]["HOME"] == found["environment"]["TMPDIR"]
    assert Path(found["environment"]["HOME"]).is_relative_to(tmp_path)
    assert "hunter2" not in found["block"]
    assert found["held"] == []
    others = [link for link in found["descriptors"] if not link.startswith(("/proc/", "/dev/null"))]
    assert {link.partition(":")[0] for link in others} <= {"pipe", "socket"}
    assert len(others) <= 3  # what it prints, twice, and its messages
    assert found["processes"] == "PermissionError"
    assert found["memory"] == 0


def asks_the_kernel(_argument, _link):
    libc = ctypes.CDLL(None, use_errno=True)
    calls = {
        "ptrace": 101,
        "process_vm_readv": 310,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "io_uring_setup": 425,
        "keyctl": 250,
        "unshare": 272,
        "setns": 308,
        "mount": 165,
        "init_module": 175,
        "kexec_load": 246,
        "open_by_handle_at": 304,
        "shmget": 29,
        "memfd_create": 319,
        "personality": 135,
    }
    answers = {}
    for name, number in calls.items():
        ctypes.set_errno(0)
        libc.syscall(number, 0, 0, 0, 0, 0)
        answers[name] = ctypes.get_errno()
    new_user = 0x10000000 | signal.SIGCHLD
    ctypes.set_errno(0)
    made = libc.syscall(56, new_user, 0, 0, 0, 0)
    if made == 0:
        os._exit(0)
    answers["clone"] = ctypes.get_errno()
    return answers


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_a_job_asks_the_kernel_for_nothing_that_it_does_not_need(box, needs):
    needs(Feature.CALLS)
    answers, _ = run(asks_the_kernel, None, box)
    assert set(answers.values()) == {1}, answers  # EPERM


def regains(_argument, _link):
    status = Path("/proc/self/status").read_text().splitlines()
    told = dict(line.split(":\t") for line in status if ":\t" in line)
    return {
        "told": {name: told[name] for name in ("CapEff", "NoNewPrivs", "Seccomp", "Uid")},
        "root": outcome(lambda: os.setuid(0 if os.getuid() else 1)),
        "worker": outcome(lambda: os.kill(os.getppid() or 1, 0)),
    }


def test_a_job_has_no_rights_and_gets_none(box, needs):
    needs(Feature.PRIVILEGES, Feature.SIGNALS)
    has, _ = run(regains, None, box)
    assert int(has["told"]["CapEff"], 16) in (0, 4)  # nothing, or to read what Landlock lets it
    assert has["told"]["NoNewPrivs"] == "1"
    assert has["root"] in ("PermissionError", "OSError")  # a namespace may not know that user


def test_a_workers_job_is_not_the_superuser(box, needs):
    needs(Feature.USER)
    has, _ = run(regains, None, box)
    assert int(has["told"]["Uid"].split()[0]) != 0


def makes_a_pool(_argument, _link):
    from multiprocessing.pool import ThreadPool

    with ThreadPool(2) as pool:
        return pool.map(len, ["a", "bb"])


def test_what_stages_use_still_works_there(box, needs):
    needs(Feature.DESCENDANTS)
    assert run(makes_a_pool, None, box)[0] == [1, 2]
    assert FOUND == []  # that was the child's
