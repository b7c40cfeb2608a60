"""One process of the farm that the storm goes over, and how to start it again."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos import places
from tests.e2e.live import ROOT

CLOCK = Path(__file__).parent / "clock"


class Part:
    """One process, and how to start it again. Its clock, and its children's, can be put."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        code: Path = ROOT,
    ) -> None:
        self.name = name
        self._command = command
        self._code = code
        self._clock = log.with_suffix(".clock")
        self.put_clock(0.0)
        path = os.pathsep.join([str(CLOCK), str(code)])
        mine = {"FARM_CHAOS_CLOCK": str(self._clock), "PYTHONPATH": path}
        self._environment = environment | mine
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, more: Mapping[str, str] | None = None) -> None:
        """Start it, this once with more options and variables."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *options],
                cwd=self._code,
                env=places.without_ours(os.environ) | self._environment | dict(more or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def put_clock(self, off_s: float) -> None:
        """Let its clock be off by so many seconds from now on."""
        # In place: the processes have the file mapped.
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("d", off_s))

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(sig)
            self._process.wait(60)

    @property
    def has_ended(self) -> bool:
        """Whether it was started, and is over."""
        return self._process is not None and self._process.poll() is not None

    def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(120)

    def restart(self, sig: signal.Signals = signal.SIGKILL) -> None:
        self.kill(sig)
        self.start()
