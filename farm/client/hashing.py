"""A sha256 that is computed beside the work that brings its bytes."""

from __future__ import annotations

import hashlib
from typing import Self

from farm.client.aside import Aside

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
        self._updating = Aside("sha256")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._updating.close()

    def update(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            part = left[: _BLOCK_BYTES - self._filled]
            self._filling[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == _BLOCK_BYTES:
                self._updating.start(self._hash.update, self._filling)
                self._filling, self._other = self._other, self._filling
                self._filled = 0

    def restart(self) -> None:
        """Forget all of it."""
        self._updating.wait()
        self._filled = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """``sha256:…`` of all of it so far."""
        self._updating.wait()
        self._hash.update(self._filling[: self._filled])
        self._filled = 0
        return f"sha256:{self._hash.hexdigest()}"
