"""A sha256 that is computed beside the work that brings its bytes."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

#: Small enough for a processor's cache, and large enough that handing it over costs nothing.
_BLOCK_BYTES = 1 << 20


class Hashing:
    """sha256 in a thread of its own: it gives the interpreter away, so that its caller goes on meanwhile.

    The bytes are copied into one of two blocks; while one is filled, the other is hashed. Its caller never
    waits longer than for one block, and what isn't a block long is hashed without a thread.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._filling = memoryview(bytearray(_BLOCK_BYTES))
        self._other = memoryview(bytearray(_BLOCK_BYTES))
        self._filled = 0
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")

    def __enter__(self) -> Hashing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def update(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            part = left[: _BLOCK_BYTES - self._filled]
            self._filling[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == _BLOCK_BYTES:
                self._wait()
                self._running = self._thread.submit(self._hash.update, self._filling)
                self._filling, self._other = self._other, self._filling
                self._filled = 0

    def restart(self) -> None:
        """Forget all of it."""
        self._wait()
        self._filled = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """``sha256:…`` of all of it so far."""
        self._wait()
        self._hash.update(self._filling[: self._filled])
        self._filled = 0
        return f"sha256:{self._hash.hexdigest()}"

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None
