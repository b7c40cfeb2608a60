"""What ``farm up`` says while it starts: line by line, or on a terminal by one line that changes."""

from __future__ import annotations

import time
from typing import TextIO

from farm.specs import durations, texts

_WIDTH = 79
_ERASE = "\r\x1b[K"


class Starting:
    """Tells what is waited for, and what is ready.

    Parameters:
        out: None to say nothing.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._live = out is not None and out.isatty()
        self._what = ""
        self._since = time.monotonic()

    def waits_for(self, what: str, detail: str = "") -> None:
        """Say what is waited for; may be called as often as it is looked at.

        Parameters:
            detail: how far it is, for the line that changes.
        """
        is_new = what != self._what
        if is_new:
            self._what, self._since = what, time.monotonic()
        passed_s = int(time.monotonic() - self._since)
        if self._live:
            after = f" ({durations.told(passed_s)})" if passed_s else ""
            more = texts.escaped(f": {detail}") if detail else ""
            self._write(f"{_ERASE}{f'waiting for {what}{after}{more}'[:_WIDTH]}")
        elif is_new:
            self._write(f"waiting for {what}\n")

    def ready(self, said: str) -> None:
        """Say that what was waited for is there."""
        took_s = time.monotonic() - self._since
        self._write(f"{_ERASE if self._live else ''}{said} after {took_s:.1f} s\n")
        self._what = ""

    def close(self) -> None:
        """Erase the line that changes."""
        if self._live:
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()
