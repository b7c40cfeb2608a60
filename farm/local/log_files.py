"""The log files of ``farm up``'s parts: appended to by several processes, and rotated by one.

A file that has become too large is renamed. Processes that log go over to the new one with their next line
(``farm.logs.follow``), so no line is lost, none waits for this process, and none needs it to live.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_log = logging.getLogger(__name__)

_LINE_BYTES = 1000
_LOOK_S = 0.1


class LogFiles:
    """
    Parameters:
        most_bytes: of a file before it is rotated.
        kept: how many earlier files of a part are kept.
    """

    def __init__(self, folder: Path, *, most_bytes: int, kept: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._kept = kept
        #: Part → where its file was as long as this when the part was started.
        self._began: defaultdict[str, int] = defaultdict(int)
        self._rotating = threading.Lock()

    def create(self) -> None:
        """Make the folder."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, part: str) -> Path:
        return self._folder / f"{part}.log"

    def open(self, part: str) -> IO[bytes]:
        """A part's file, to start the part with."""
        with self._rotating:
            self._rotate(part)
            file = self.path(part)
            file.touch(mode=0o600)
            self._began[part] = file.stat().st_size
            return file.open("ab")

    def rotate(self, part: str) -> None:
        """Begin another file if a part's has become too large."""
        with self._rotating:
            self._rotate(part)

    @contextmanager
    def rotated(self) -> Iterator[None]:
        """Rotate what parts have opened, all through the block: also while they start and stop."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_S):
                try:
                    self._look()
                except OSError as err:  # a full disk, say: the files grow until there is room
                    _log.warning("can't rotate the log files: %s", err)

        thread = threading.Thread(target=look, name="log files", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        for part in list(self._began):
            self.rotate(part)

    def _rotate(self, part: str) -> None:
        log = self.path(part)
        try:
            if log.stat().st_size < self._most_bytes:
                return
        except FileNotFoundError:
            return
        for number in range(self._kept - 1, 0, -1):
            earlier = self._earlier(log, number)
            if earlier.exists():
                earlier.replace(self._earlier(log, number + 1))
        log.replace(self._earlier(log, 1))
        log.touch(mode=0o600)
        self._began[part] = 0

    @staticmethod
    def _earlier(log: Path, number: int) -> Path:
        return log.with_name(f"{log.name}.{number}")

    def last_line(self, part: str) -> str:
        """What a part has said last since it was started."""
        with self._rotating, self.path(part).open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._began[part], end - _LINE_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return lines[-1].strip() if lines else ""

    def tail(self, part: str, lines: int = 5) -> str:
        """The end of a part's file."""
        with self._rotating:
            last = self.path(part).read_bytes().splitlines()[-lines:]
        return b"\n".join(last).decode(errors="replace")
