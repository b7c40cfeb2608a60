"""Has PyTorch timed beside an engine: starts the process, waits for it, and takes what it found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from farm.reports.metrics import MAX_CLOCK_DIFFERENCE, Timed
from farm.reports.speed_ups import PYTORCH
from farm.specs import durations
from farm.stages import MeasureParams, ReportProgress
from workers.backends.aotinductor import compiler
from workers.measure.gpu import PeersAsked, PeersFound
from workers.peers.files import PeersAnswer, PeersRequest
from workers.sandbox import tree, usage
from workers.sandbox.environment import MEMORY

#: For all figures: several minutes for the compiler, and seconds for each figure.
LIMIT_S = 1800.0
#: How much of the job's memory the engine's process and this one may use together, before this one is ended:
#: at the whole of it the job would be, with the engine's figures.
_MEMORY_SHARE = 0.9
_LOOK_S = 0.5
_PROCESS = (sys.executable, "-P", "-m", "workers.peers.process")
_UNREAD = "its answer can't be read"


class PeersBeside:
    """Times PyTorch in a process of its own.

    Parameters:
        source: the program, which the process loads itself.
        folder: for the files between the processes.
        kept: the figures that another measurement on this card took of the same, if there are any.
        limit_s: after which the process is killed.
        command: what is started, with the request's path as its last argument.
    """

    def __init__(
        self,
        source: Path,
        params: MeasureParams,
        folder: Path,
        *,
        kept: Path | None = None,
        limit_s: float = LIMIT_S,
        command: Sequence[str] = _PROCESS,
    ) -> None:
        self._source = source
        self._params = params
        self._folder = folder
        self._kept = kept
        self._limit_s = limit_s
        self._command = command
        self._answer = folder / "peers.json"

    @property
    def to_keep(self) -> Path | None:
        """The answer, if it is new and complete: for the next measurement of the same."""
        try:
            answer = PeersAnswer.read(self._answer)
        except ValueError:
            return None
        return self._answer if answer and answer.is_complete else None

    def __call__(self, asked: PeersAsked, progress: ReportProgress) -> PeersFound:
        """The figures, or the reasons why there are none."""
        kept = _kept(self._kept, asked.sm_mhz) if self._kept else None
        return kept or PeersFound(figures=self._taken(asked, progress))

    def _taken(self, asked: PeersAsked, progress: ReportProgress) -> Mapping[str, Timed]:
        self._answer.unlink(missing_ok=True)
        try:
            ended = self._run(self._written(asked), progress)
        except OSError as err:
            ended = f"the process that times PyTorch can't be started: {err}"
        try:
            answer = PeersAnswer.read(self._answer) or PeersAnswer()
        except ValueError:
            answer, ended = (
                PeersAnswer(),
                ended or f"the process that times PyTorch ended: {_UNREAD}",
            )
        return _figures(answer, ended)

    def _written(self, asked: PeersAsked) -> Path:
        arrays, request = self._folder / "peers.npz", self._folder / "peers-request.json"
        np.savez(arrays, *asked.arrays.values())
        wanted = PeersRequest(
            source=self._source,
            params=self._params,
            arrays=arrays,
            inputs=list(asked.arrays),
            batch=asked.batch,
            precision=asked.precision,
            warmup_s=asked.pace.warmup_s,
            duration_s=asked.pace.duration_s,
            min_iterations=asked.pace.min_iterations,
            max_s=asked.pace.max_s,
            uuid=asked.tenants.uuid,
            beside=asked.tenants.own,
            answer=self._answer,
        )
        request.write_text(wanted.model_dump_json())
        return request

    def _run(self, request: Path, progress: ReportProgress) -> str | None:
        """Run the process; return how it failed, or None if it didn't."""
        process = subprocess.Popen(
            [*self._command, str(request)],
            stdin=subprocess.DEVNULL,
            env=os.environ | compiler.environment(),  # read when PyTorch's compiler is imported
        )
        deadline, doing = time.monotonic() + self._limit_s, ""
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return _death(process.wait(_LOOK_S))
                if time.monotonic() > deadline:
                    return f"the process that times PyTorch took longer than {durations.told(self._limit_s)}"
                if _is_short_of_memory():
                    return (
                        "the process that times PyTorch would have exceeded the job's memory limit"
                    )
                now = self._doing()
                if now != doing:
                    doing = now
                    progress(f"time: {PYTORCH.get(doing, 'PyTorch')}", None)
        finally:
            _end(process)

    def _doing(self) -> str:
        with suppress(ValueError):
            answer = PeersAnswer.read(self._answer)
            return (answer.doing if answer else None) or ""
        return ""


def _kept(path: Path, sm_mhz: float | None) -> PeersFound | None:
    """Kept figures, unless the card's clock is another now."""
    try:
        answer, age_s = PeersAnswer.read(path), time.time() - path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if answer is None or not answer.is_complete or sm_mhz is None:
        return None
    clocks = [timed.sm_mhz for timed in answer.peers.values() if timed.p50_ms is not None]
    if any(
        clock is None or abs(clock - sm_mhz) > MAX_CLOCK_DIFFERENCE * sm_mhz for clock in clocks
    ):
        print("PyTorch is timed again: the GPU's clock was another", flush=True)
        return None
    print(
        f"PyTorch was timed on this GPU {durations.told(age_s)} ago, beside another engine",
        flush=True,
    )
    return PeersFound(figures=answer.peers, age_s=max(0, round(age_s)))


def _figures(answer: PeersAnswer, ended: str | None) -> Mapping[str, Timed]:
    """What the process found, and for what it didn't find, why it ended."""
    found = {name: timed for name, timed in answer.peers.items() if name in PYTORCH}
    if ended is None and answer.doing is None and found:
        return found
    during = f", at: {PYTORCH[answer.doing]}" if answer.doing in PYTORCH else ""
    reason = f"{ended or f'the process that times PyTorch ended: {_UNREAD}'}{during}"
    # An eager figure in the engine's precision is the source's own, where that is in it.
    expected = [name for name in PYTORCH if name != "eager_typed" or answer.doing == name]
    return {name: Timed(reason=reason) for name in expected} | found


def _death(code: int) -> str | None:
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return "the process that times PyTorch was killed, most likely for lack of memory"
    how = signal.strsignal(-code) or f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process that times PyTorch died ({how}); the job's log shows where"


def _is_short_of_memory() -> bool:
    """Whether this process and its descendants come near to the limit at which the job would be killed."""
    most = int(os.environ.get(MEMORY, 0)) * _MEMORY_SHARE
    if not most:
        return False
    pids = [os.getpid(), *tree.below(os.getpid())]
    return usage.memory_bytes(pids, file_system=None, most=int(most)) > most


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, if it is alive, and its descendants: compilers."""
    if process.poll() is None:
        left = tree.below(process.pid) | {process.pid: os.getpid()}
        tree.send(left, signal.SIGKILL)
        process.kill()
        process.wait()
