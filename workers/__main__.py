"""``python -m workers``: one pinned worker a GPU of this machine, and one for CPU work.

This process only supervises. Each worker is a process of its own, started with
``--one UUID`` or ``--one cpu``; what ends this one ends them all. ``CUDA_VISIBLE_DEVICES`` leaves out
GPUs that something else uses.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from farm import installed, logs, processes
from farm.errors import InvalidRequest, WorkerNameTaken
from farm.machine import gpus
from farm.machine.gpus import Gpu
from farm.settings import Settings
from workers.backends.aotinductor import compiler
from workers.runner import forks, toolchain
from workers.sandbox import features

log = logging.getLogger(__name__)

#: A cold shutdown takes 3 s; with the broker gone it may wait for ever, and leases cover the rest.
_GRACE_S = 10.0
_RESTART_S = 2.0
#: How a process ends whose worker's name is another's: there is no point in starting it again.
_NAME_TAKEN = 3
#: What a job's child would otherwise import on its own time.
PRELOADED = ["workers.stages.warm"]


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    if options.check_sandbox:
        from workers.runner import trial

        return trial.show(Settings(), as_document=options.json)
    if options.check_store:
        from workers.runner import stores

        return stores.show(Settings(), as_document=options.json)
    missing = toolchain.missing()
    if missing:
        print(
            f"error: can't start a worker: {', '.join(missing)} not installed\n"
            "hint: pip install 'engine-farm[worker,cpu,rtx]'",
            file=sys.stderr,
        )
        return 2
    try:
        if options.one is not None:
            return _one(options.one, options.name, options.supervisor)
        if Settings().sandbox == "required" and not options.prove and _lacks_sandbox():
            return 2
        return _supervise(Settings(), options)
    except (InvalidRequest, WorkerNameTaken) as err:
        print(f"error: {err.detail}\nhint: {err.hint}", file=sys.stderr)
        return _NAME_TAKEN if isinstance(err, WorkerNameTaken) else 2


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="farm worker", description=__doc__)
    parser.add_argument("--cpu-only", action="store_true", help="don't start GPU workers")
    parser.add_argument("--no-cpu", action="store_true", help="don't start a CPU worker")
    parser.add_argument(
        "--name", help="name prefix of this machine's workers, instead of the host's"
    )
    parser.add_argument(
        "--check-sandbox",
        action="store_true",
        help="test job isolation on this machine and exit",
    )
    parser.add_argument(
        "--check-store",
        action="store_true",
        help="test this machine's way to the artifact store and exit",
    )
    parser.add_argument("--prove", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # "cpu", or a GPU's UUID
    # Its process id.
    parser.add_argument("--supervisor", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _supervise(settings: Settings, options: argparse.Namespace) -> int:
    from workers.runner import sole

    if options.name:
        os.environ["FARM_WORKER_HOST"] = options.name
    gpus_of = _workers(options)
    with sole.sole_supervisor(settings.home, gpus_of):
        if options.prove:
            from workers.runner import proving

            if not proving.prove(settings, gpus_of, as_document=options.json):
                return 1
        logs.configure(settings.log_level, settings.log_format, settings.log_file)
        return _Supervisor({name: _pinned(gpu) for name, gpu in gpus_of.items()}).run()


def _lacks_sandbox() -> bool:
    """Whether something that must hold doesn't, which is told then."""
    from workers.runner import trial

    forks.preload([])
    lacking = features.missing(trial.tried(Settings(), is_gpu=False))
    if lacking:
        print(
            f"error: this machine can't isolate jobs: {'; '.join(lacking)}\n"
            "hint: see farm worker --check-sandbox; FARM_SANDBOX=best accepts less",
            file=sys.stderr,
        )
    return bool(lacking)


def _one(which: str, name: str, supervisor: int) -> int:
    """Be one worker, for as long as its supervisor lives."""
    processes.end_with_parent(supervisor, grace_s=_GRACE_S)
    # First of all imports: it takes seconds, and runs beside those of Celery.
    forks.preload(PRELOADED)
    from workers.runner import app, task

    found = {gpu.uuid: gpu for gpu in gpus.discover()} if which != "cpu" else {}
    app.run_worker(name, found.get(which), register=task.register)
    return 0


def _workers(options: argparse.Namespace) -> dict[str, Gpu | None]:
    """Worker's name → its GPU; None for CPU work."""
    from workers.runner.names import default_name, queues

    found: dict[str, Gpu | None] = {}
    if not options.no_cpu:
        found[default_name(None, 0)] = None
    if not options.cpu_only:
        # Whether it really compiles, each worker tries when it starts.
        runtimes = toolchain.runtimes(compiles=bool(compiler.tools()))
        there = gpus.visible(gpus.discover(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        for index, gpu in enumerate(there):
            if not queues(gpu, runtimes):
                print(
                    f"{gpu.name} ({gpu.uuid}) gets no worker: no runtime for GPUs is installed "
                    "(pip install 'engine-farm[worker,gpu,tensorrt]')",
                    file=sys.stderr,
                )
                continue
            found[default_name(gpu, index)] = gpu
    return found


def _pinned(gpu: Gpu | None) -> dict[str, str]:
    """What a worker's environment needs."""
    # CPU work sees no GPU, so that no stage takes memory on one by accident.
    if gpu is None:
        return {"FARM_ONE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {"FARM_ONE": gpu.uuid, "CUDA_VISIBLE_DEVICES": gpu.uuid}


class _Supervisor:
    """Keeps the workers running until it is told to stop."""

    def __init__(self, commands: dict[str, dict[str, str]]) -> None:
        self._commands = commands
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def run(self) -> int:
        if not self._commands:
            print(
                "error: no usable GPU on this machine, and --no-cpu excludes a CPU worker",
                file=sys.stderr,
            )
            return 2
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._stop)
        while not self._stopping:
            for name in self._commands:
                worker = self._running.get(name)
                if worker is not None and worker.poll() == _NAME_TAKEN:
                    log.error("another machine has the name %s: this one stops", name)
                    self._stop()
                    break
                if worker is not None and worker.poll() is not None:
                    log.warning("worker %s exited with %s; restarting it", name, worker.returncode)
                if worker is None or worker.poll() is not None:
                    self._start(name)
            if not self._stopping:
                time.sleep(_RESTART_S if len(self._running) else 0)
        return self._end()

    def _start(self, name: str) -> None:
        more = dict(self._commands[name])
        one = more.pop("FARM_ONE")
        mine = ("--supervisor", str(os.getpid()))
        command = installed.command("workers", "--one", one, "--name", name, *mine)
        # In a session of its own: Ctrl+C reaches this process alone, which then ends them in order.
        self._running[name] = subprocess.Popen(
            command, env=installed.environment() | more, start_new_session=True
        )

    def _stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        self._stopping = True
        for worker in self._running.values():
            worker.terminate()

    def _end(self) -> int:
        """Wait for the workers to end; how this process ends."""
        deadline = time.monotonic() + _GRACE_S
        for worker in self._running.values():
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
        codes = {worker.poll() for worker in self._running.values()}
        return _NAME_TAKEN if _NAME_TAKEN in codes else 0


if __name__ == "__main__":
    sys.exit(main())
