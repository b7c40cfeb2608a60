"""First looks at sources: each blob is inspected once, whether it is accepted or refused."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from farm.errors import Busy, Rejected
from farm.formats import sources
from farm.formats.sources import Look
from farm.specs.source import SourceFormat
from farm.store.base import Store

_KNOWN = 4096
#: A look holds the interpreter for up to a second: more at once would only slow each other down.
_AT_ONCE = 2
_WAIT_S = 1.0

#: A blob never changes, but a damaged file may be replaced by a sound one. Requests change its time.
_Key = tuple[str, SourceFormat, int, int]


class Looks:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[_Key, Look | Rejected] = OrderedDict()
        self._lock = threading.Lock()
        self._looking = threading.BoundedSemaphore(_AT_ONCE)

    def at(self, digest: str, format: SourceFormat) -> Look:
        """Refuse what can't be a source of this format. Returns what else the look found.

        Raises:
            SourceRefused, InvalidRequest
            Busy: other sources are being inspected.
        """
        if not self._store.has(digest):
            return Look()
        with self._store.local(digest) as path:
            return self._at(path, digest, format)

    def _at(self, path: Path, digest: str, format: SourceFormat) -> Look:
        found = path.stat()
        key = (digest, format, found.st_ino, found.st_size)
        seen = self._recall(key)
        if seen is None:
            if not self._looking.acquire(timeout=_WAIT_S):
                raise Busy("other sources are being inspected")
            try:
                seen = self._recall(key) or _look(path, format)
            finally:
                self._looking.release()
            self._remember(key, seen)
        if isinstance(seen, Rejected):
            # A new exception: one that is raised repeatedly accumulates traceback frames.
            raise type(seen)(seen.detail, hint=seen.hint)
        return seen

    def _recall(self, key: _Key) -> Look | Rejected | None:
        with self._lock:
            seen = self._known.get(key)
            if seen is not None:
                self._known.move_to_end(key)
            return seen

    def _remember(self, key: _Key, seen: Look | Rejected) -> None:
        with self._lock:
            self._known[key] = seen
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)


def _look(path: Path, format: SourceFormat) -> Look | Rejected:
    try:
        return sources.check(path, format)
    except Rejected as err:
        return type(err)(err.detail, hint=err.hint)
