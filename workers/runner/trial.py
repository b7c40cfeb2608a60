"""Tests a job's sandbox on this machine: a trial job tries everything that a job must not do."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm.settings import Settings
from workers.runner.child import Child
from workers.runner.forks import preload
from workers.runner.inside import FOUND, Link
from workers.sandbox import Feature, Found, Mode, folder, kernel
from workers.sandbox.settings import sandbox_of

_TIME_S = 30.0


def tried(settings: Settings, *, is_gpu: bool) -> list[Found]:
    """Each part of the sandbox here: enforced if the kernel accepted it and no attempt got past it."""
    if Mode(settings.sandbox) is Mode.OFF:
        return [Found(feature=one, enforced=False, how="FARM_SANDBOX=off") for one in Feature]
    with folder.temporary(settings.home, "trial-") as at:
        return _tried(at, settings, is_gpu=is_gpu)


def _tried(at: Path, settings: Settings, *, is_gpu: bool) -> list[Found]:
    workdir, secret = at / "work", at / "secret"
    workdir.mkdir()
    secret.write_text("a blob of somebody else's")
    sandbox = sandbox_of(settings, workdir, (), is_gpu=is_gpu, timeout_s=_TIME_S)
    try:
        with _listening() as port:
            argument = {"secret": str(secret), "port": port, "worker": os.getpid()}
            # Report missing parts instead of refusing to run.
            box = replace(sandbox, mode=Mode.BEST)
            with Child(_try_all, argument, timeout_s=_TIME_S, sandbox=box) as child:
                said = child.wait()
    except FarmError as err:
        return [Found(feature=one, enforced=False, how=err.detail) for one in Feature]
    passed: dict[str, str] = dict(said["passed"])
    if _is_held(workdir / "held"):
        passed[Feature.DESCENDANTS] = "a process outlived its job"
    found = {Feature(name): (enforced, how) for name, enforced, how in said["found"]}
    return [_judged(one, *found[one], passed.get(one)) for one in Feature]


def _judged(feature: Feature, enforced: bool, how: str, passed: str | None) -> Found:
    if passed is not None and enforced:
        return Found(feature=feature, enforced=False, how=f"{passed}, in spite of {how}")
    return Found(feature=feature, enforced=enforced, how=how)


@contextmanager
def _listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def _try_all(argument: Mapping[str, Any], _link: Link) -> dict[str, Any]:
    """In the child: what it got past, by the part that should have stopped it."""
    secret, worker = Path(argument["secret"]), argument["worker"]
    attempts: Sequence[tuple[Feature, str, Callable[[], object]]] = (
        (Feature.FILES, "another file was read", secret.read_bytes),
        (Feature.FILES, "another file was written", lambda: secret.write_text("taken")),
        (Feature.FILES, "a file was made", lambda: secret.with_name("made").write_text("made")),
        (Feature.NETWORK, "a server was reached", lambda: _connect(argument["port"])),
        (Feature.CALLS, "a namespace was made", lambda: kernel.unshare(kernel.NEWUSER)),
        (Feature.PRIVILEGES, "it took another user", lambda: os.setuid(0 if os.getuid() else 1)),
        (Feature.USER, "it is the superuser", _be_superuser),
        (Feature.SECRETS, "the worker's environment was read", lambda: _environment(worker)),
        (Feature.SIGNALS, "a signal reached the worker", lambda: os.kill(worker, 0)),
    )
    passed = {}
    for feature, what, attempt in attempts:
        with suppress(OSError):
            attempt()
            passed[feature.value] = what
    _outlive(Path("held"))
    found = [[one.feature.value, one.enforced, one.how] for one in FOUND]
    return {"passed": passed, "found": found}


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _be_superuser() -> None:
    if os.geteuid() != 0:
        raise PermissionError


def _outlive(held: Path) -> None:
    """Leave behind a process in its own session, which holds a file until it ends."""
    file = held.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for sig in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(sig, signal.SIG_IGN)
            time.sleep(_TIME_S)
        os._exit(0)


def _is_held(held: Path) -> bool:
    with suppress(OSError), held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def as_json(found: Sequence[Found]) -> dict[str, dict[str, object]]:
    return {one.feature.value: one.as_json() for one in found}


def show(settings: Settings, *, as_document: bool) -> int:
    """Print what is enforced on this machine; return 0 if everything is."""
    preload([])
    found = tried(settings, is_gpu=False)
    whole = all(one.enforced for one in found)
    if as_document:
        document = {"mode": settings.sandbox, "enforced": whole, "parts": as_json(found)}
        print(json.dumps(document, indent=2))
        return 0 if whole else 1
    width = max(len(one.feature) for one in found)
    for one in found:
        print(f"{one.feature:<{width}}  {'enforced' if one.enforced else 'MISSING':<8}  {one.how}")
    if not whole:
        print(
            "what is missing, a hostile model could use: see docs/why/sandbox.md", file=sys.stderr
        )
    return 0 if whole else 1
