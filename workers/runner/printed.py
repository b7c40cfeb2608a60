"""A job's output, limited by rate and in total; the beginning and the end are kept."""

from __future__ import annotations

from collections import deque

from workers.sandbox.pace import Pace

_BYTES_A_S = 1 << 20  #: kept, with a burst of the same size
_DROPPED_A_S = 64 << 20  #: read and dropped, past the limit
_TAIL_SHARE = 8  #: 1/8 of the limit is reserved for the end of the log


class Printed:
    """Takes a job's output and returns what goes to the log.

    The beginning goes there as it arrives. Past that, the last part, which says why a job failed, is held
    back until the job has ended.
    """

    def __init__(self, most_bytes: int) -> None:
        self._tail_bytes = most_bytes // _TAIL_SHARE
        self._room = most_bytes - self._tail_bytes
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0
        self._has_said = False
        self._kept, self._read_only = Pace(_BYTES_A_S), Pace(_DROPPED_A_S)

    def may_read(self) -> bool:
        """Whether more may be read now: a job that prints faster is blocked."""
        return self._pace.may()

    @property
    def _pace(self) -> Pace:
        return self._kept if self._room > 0 else self._read_only

    def take(self, data: bytes) -> str:
        """Return the part of this that goes to the log now."""
        self._pace.spend(len(data))
        kept, left = data[: self._room], data[self._room :]
        self._room -= len(kept)
        text = _text(kept)
        if left:
            self._keep_last(left)
            if not self._has_said:
                self._has_said = True
                text += "\n[log truncated: the job prints too much; the end follows]\n"
        return text

    def _keep_last(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= self._tail_bytes:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._dropped += gone

    def end(self) -> str:
        """Return the part held back, after a note of how much was left out before it."""
        tail = b"".join(self._tail)
        last = tail[-self._tail_bytes :] if self._tail_bytes else b""
        dropped = self._dropped + len(tail) - len(last)
        self._tail.clear()
        self._tail_size = 0
        if not tail:
            return ""
        return (f"[{dropped} bytes omitted]\n" if dropped else "") + _text(last)


def _text(data: bytes) -> str:
    # Postgres text can't hold NUL.
    return data.decode(errors="replace").replace("\0", "\ufffd")
