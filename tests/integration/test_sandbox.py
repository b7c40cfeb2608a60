"""Arbitrary code in a job's process: it finds nothing to take, and harms nobody.

Each function here runs in a child as a stage does, and does its worst. What a kernel can't enforce is
skipped with the reason; that a worker tells so is tested too.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from farm.errors import (
    ChildDied,
    ChildFilledDisk,
    ChildOutOfMemory,
    ChildTimedOut,
    SandboxMissing,
    StageFault,
)
from farm.settings import Settings
from workers.runner import trial
from workers.runner.child import FOUND, Child, Line, Room
from workers.sandbox import Feature, Limits, Mode, Sandbox
from workers.sandbox import settings as sandbox_settings
from workers.sandbox.features import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def box(tmp_path):
    """The sandbox of a job with an input, beside a blob that isn't its own."""
    store = tmp_path / "a store"
    workdir = tmp_path / "work"
    store.mkdir()
    workdir.mkdir()
    (store / "input").write_text("the job's own")
    (store / "other").write_text("somebody else's")
    limits = Limits.of_machine(workdir, slots=2, timeout_s=60)
    return Sandbox(workdir=workdir, reads=(store / "input",), limits=limits)


def run(function, argument, box, *, timeout_s=60, **options):
    with Child(function, argument, timeout_s=timeout_s, sandbox=box, **options) as child:
        happenings = list(child.happenings())
        return child.result(), happenings


def printed(happenings):
    return "".join(one.text for one in happenings if isinstance(one, Line))


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def outcome(attempt):
    """What an attempt gives, or the error's name."""
    try:
        return repr(attempt())
    except OSError as err:
        return type(err).__name__


# Files


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


# Network


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


# Secrets


def looks_for_secrets(_argument, _link):
    """What is left of the worker's in this process: its surroundings, its descriptors, its memory."""
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
from workers.runner.child import preload
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


# The kernel


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


# What is left of it


def leaves_others(argument, _link):
    """Processes in sessions of their own, which hear no signal; each holds a file until it ends."""
    held = open(argument["held"], "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(sig, signal.SIG_IGN)
                time.sleep(600)
            os._exit(0)
    Path(argument["ready"]).touch()
    how = argument["how"]
    if how == "fails":
        raise ValueError("so it is")
    if how == "crashes":
        ctypes.string_at(0)
    if how == "waits":
        time.sleep(600)
    return


def finish(child):
    list(child.happenings())
    return child.result()


def is_held(file):
    with file.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("sandboxed", [True, False])
@pytest.mark.parametrize(
    ("how", "error"),
    [("succeeds", None), ("fails", StageFault), ("crashes", ChildDied), ("waits", ChildTimedOut)],
)
def test_nothing_that_a_job_has_started_outlives_it(box, how, error, sandboxed):
    held = box.workdir / "held"
    argument = {"held": str(held), "ready": str(box.workdir / "ready"), "how": how}
    with Child(
        leaves_others,
        argument,
        timeout_s=60 if how != "waits" else 3,
        sandbox=box if sandboxed else None,
    ) as child:
        if error is None:
            finish(child)
        else:
            if how == "waits":  # its time begins when it is followed
                wait_for((box.workdir / "ready").exists)
            with pytest.raises(error):
                finish(child)
        assert not is_held(held)


def test_a_cancelled_job_and_all_it_has_started_end_within_a_second(box):
    held, ready = box.workdir / "held", box.workdir / "ready"
    argument = {"held": str(held), "ready": str(ready), "how": "waits"}
    with Child(leaves_others, argument, timeout_s=60, sandbox=box) as child:
        wait_for(ready.exists)
        assert is_held(held)
        child.pause()  # as while another has quiet
        start = time.monotonic()
        child.end()
        assert time.monotonic() - start < 1.0
        assert not is_held(held)


KILLED = """
import sys
from pathlib import Path
from tests.integration import test_sandbox as t
from workers.runner.child import preload
from workers.runner.child import Child
from workers.sandbox import Limits, Sandbox
if __name__ == "__main__":
    preload([])
    work = Path(sys.argv[1])
    box = Sandbox(workdir=work, reads=(), limits=Limits.of_machine(work, slots=2, timeout_s=60))
    argument = {"held": str(work / "held"), "ready": str(work / "ready"), "how": "waits"}
    with Child(t.leaves_others, argument, timeout_s=60, sandbox=box) as child:
        for _ in child.happenings():
            pass
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_killed_worker_leaves_nothing_running(tmp_path, needs, stopped):
    needs(Feature.DESCENDANTS)
    worker = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT)
    try:
        wait_for((tmp_path / "ready").exists, 60)
        assert is_held(tmp_path / "held")
        if stopped:
            for pid in children(worker.pid):
                for one in children(pid):
                    with suppress(ProcessLookupError):
                        os.killpg(one, signal.SIGSTOP)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not is_held(tmp_path / "held"))


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# Limits


def takes_memory(how, _link):
    if how == "at once":
        return len(bytearray(1 << 45))
    if how == "numpy":
        import numpy

        return int(numpy.zeros(1 << 45, dtype=numpy.int8).size)
    held = []
    while True:
        held.append(b"x" * (1 << 22))
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["at once", "numpy", "bit by bit"])
def test_a_job_that_takes_too_much_memory_ends_alone_and_is_told_what_to_do(box, how):
    small = replace(box, limits=replace(box.limits, memory_bytes=700 * 2**20))
    with pytest.raises(ChildOutOfMemory) as caught:
        run(takes_memory, how, small)
    assert "FARM_JOB_MEMORY_BYTES" in caught.value.hint


def fills_the_disk(how, _link):
    if how == "one file":
        with open("big", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
    number = 0
    while True:
        number += 1
        Path(f"f{number}").write_bytes(b"x" * (1 << 20))


@pytest.mark.parametrize(("how", "error"), [("one file", StageFault), ("many", ChildFilledDisk)])
def test_a_job_that_fills_the_disk_is_ended(box, how, error):
    small = replace(box, limits=replace(box.limits, disk_bytes=20 * 2**20))
    with pytest.raises(error):
        run(fills_the_disk, how, small)
    used = sum(file.stat().st_size for file in box.workdir.rglob("*") if file.is_file())
    assert used < 4 * 2**30


def forks_without_end(_argument, _link):
    made = 0
    while True:
        try:
            pid = os.fork()
        except OSError as err:
            return [made, type(err).__name__]
        if pid == 0:
            time.sleep(600)
        made += 1


def test_a_fork_bomb_ends_at_the_limit_of_processes(box, needs):
    needs(Feature.PROCESSES)
    few = replace(box, limits=replace(box.limits, processes=400))
    (made, error), _ = run(forks_without_end, None, few)
    assert made < 400
    assert error == "BlockingIOError"


def is_limited(_argument, _link):
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "cpu": resource.getrlimit(resource.RLIMIT_CPU)[1],
        "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def test_a_job_leaves_no_core_and_is_what_the_kernel_ends_first(box):
    has, _ = run(is_limited, None, box)
    assert (has["core"], has["oom"]) == (0, "1000")
    assert 0 < has["files"] <= 4096
    assert 0 < has["cpu"] <= 60 * (os.cpu_count() or 1) + 1


def prints_without_end(_argument, _link):
    line = b"y" * 79 + b"\n"
    for _ in range(1 << 16):
        os.write(1, line * 16)
    print("the end of it")


def test_what_a_job_prints_is_cut_and_the_log_says_so_and_keeps_the_end(box):
    with Child(prints_without_end, None, timeout_s=120, sandbox=box, log_bytes=1 << 16) as child:
        text = printed(child.happenings())
    assert len(text) < (1 << 16) + 500
    assert "[the log is cut here" in text
    assert text.endswith("the end of it\n")


# Its word


def sends(frames, link):
    for frame in frames:
        os.write(link._messages.fileno(), frame.encode("latin-1"))
    os._exit(0)


def framed(text):
    return f"{len(text).to_bytes(4, 'big').decode('latin-1')}{text}"


@pytest.mark.parametrize(
    "frame",
    [
        "\x7f\xff\xff\xff",  # of 2 GiB
        "\xff\xff\xff\xff\x00\x00\x00\xff\x00\x00\x00\x00",  # of a TiB
        framed("not JSON"),
        framed("[" * 100_000),
        framed("{}"),
        framed("[1, 2]"),
        framed('["progress", 5]'),
        framed('["progress", [5, 5]]'),
        framed('["quiet", "please"]'),
        framed('["result", 1]') + framed('["result", 2]'),
        framed('["error", {"code": "lease-lost"}]'),
        framed('["error", {"code": ["x"], "detail": "", "hint": null}]'),
        framed('["bye", 1]'),
    ],
)
def test_a_message_that_no_stage_sends_ends_the_job_and_not_the_worker(box, frame):
    with pytest.raises(StageFault, match="the stage's process sent"):
        run(sends, [frame], box)


def test_a_job_that_stops_in_the_middle_of_a_message_keeps_nobody_waiting(box):
    with pytest.raises(ChildTimedOut):
        run(stops_in_a_message, None, box, timeout_s=2)


def stops_in_a_message(_argument, link):
    os.write(link._messages.fileno(), b"\x00\x00\x10\x00[")
    time.sleep(600)


@pytest.mark.parametrize("code", ["lease-lost", "unavailable", "internal-error", "no-such-thing"])
def test_a_job_cannot_end_in_an_error_that_is_its_workers(box, code):
    error = json.dumps(["error", {"code": code, "detail": "so \x1b[2Jit is", "hint": None}])
    with pytest.raises(StageFault) as caught:
        run(sends, [framed(error)], box)
    assert caught.value.detail == "so \ufffd[2Jit is"


def asks_for_quiet_and_never_listens(_argument, link):
    for _ in range(20_000):
        link.send("quiet", True)
        link.send("quiet", False)


def test_a_job_that_asks_for_quiet_without_end_blocks_nobody(box):
    with (
        Child(
            asks_for_quiet_and_never_listens, None, timeout_s=5, sandbox=box, room=Room()
        ) as child,
        pytest.raises(ChildTimedOut),
    ):
        list(child.happenings())


# Machines that have less


def test_a_worker_that_requires_what_the_machine_lacks_runs_no_job(box):
    strict = replace(box, mode=Mode.REQUIRED, own_user=False)
    if os.geteuid() == 0:
        with pytest.raises(SandboxMissing, match="user"):
            run(opens, [], strict)
    else:
        pytest.skip("needs a superuser that stays one")


OLD_KERNEL = """
import sys
from workers.sandbox import kernel, seccomp
# Kernels without Landlock and namespaces, as old ones and many containers are.
seccomp._REFUSED, seccomp._REFUSED_WITHOUT_GPU = "unshare 272 97", "landlock 444 444"
seccomp._REFUSED_OF_FILES = seccomp._REFUSED_OF_PROCESSES = "clone3 435 435"
seccomp._UNKNOWN = "clone3 435 435"
seccomp._by_arguments = lambda **_: ()
kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
seccomp.install()
from workers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def on_an_old_kernel(home, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", OLD_KERNEL, *arguments],
        env=os.environ | {"FARM_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_a_machine_without_landlock_and_namespaces_says_what_it_cannot_keep(tmp_path):
    done = on_an_old_kernel(tmp_path, "--check-sandbox", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert not told["enforced"]
    lacks = {name for name, part in told["parts"].items() if not part["enforced"]}
    assert {"files", "secrets", "descendants"} <= lacks
    assert told["parts"]["network"]["enforced"]  # by the filter of system calls
    assert told["parts"]["system calls"]["enforced"]


def test_what_a_machine_enforces_can_be_asked_before_there_is_a_farm(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "farm", "worker", "--check-sandbox", "--json"],
        env=os.environ | {"FARM_HOME": str(tmp_path / "new")},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert json.loads(done.stdout)["parts"].keys() == set(Feature), done.stderr
    assert not (tmp_path / "new" / "farm.db").exists()


def test_a_worker_that_must_have_all_does_not_start_on_such_a_machine(tmp_path):
    done = on_an_old_kernel(tmp_path, "--cpu-only", FARM_SANDBOX="required")
    assert done.returncode == 2
    assert "files (" in done.stderr
    assert "--check-sandbox" in done.stderr


def test_the_trial_tells_when_there_is_no_sandbox_at_all(tmp_path):
    found = trial.tried(Settings(home=tmp_path, sandbox="off"), is_gpu=False)
    assert len(missing(found)) == len(Feature)


def test_a_secret_in_the_libraries_own_folder_would_be_told(tmp_path, needs):
    needs(Feature.FILES)
    settings = Settings(home=tmp_path, sandbox_read=(tmp_path,))
    [files] = [one for one in trial.tried(settings, is_gpu=False) if one.feature is Feature.FILES]
    assert not files.enforced
    assert "another file was read" in files.how


def test_limits_are_a_share_of_the_machine(tmp_path):
    one = Limits.of_machine(tmp_path, slots=1, timeout_s=60)
    two = Limits.of_machine(tmp_path, slots=2, timeout_s=60)
    assert one.memory_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert abs(two.memory_bytes * 2 - one.memory_bytes) <= 2
    settings = Settings(home=tmp_path, job_memory_bytes=2**30, job_disk_bytes=2**20)
    box = sandbox_settings.sandbox_of(settings, tmp_path, (), is_gpu=False, timeout_s=60)
    assert (box.limits.memory_bytes, box.limits.disk_bytes) == (2**30, 2**20)


def makes_a_pool(_argument, _link):
    from multiprocessing.pool import ThreadPool

    with ThreadPool(2) as pool:
        return pool.map(len, ["a", "bb"])


def test_what_stages_use_still_works_there(box, needs):
    needs(Feature.DESCENDANTS)
    assert run(makes_a_pool, None, box)[0] == [1, 2]
    assert FOUND == []  # that was the child's
