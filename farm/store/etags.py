"""What a bucket says arrived: S3's ETag is the MD5 of the bytes, or of their parts' MD5s with their number.

Not every store's is. One that differs proves nothing, but one that is the same proves that all bytes arrived.
"""

from __future__ import annotations

import hashlib


class Etag:
    """The ETag of bytes uploaded in parts of this size."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._ended: list[bytes] = []
        self._part = hashlib.md5(usedforsecurity=False)
        self._filled = 0

    def update(self, data: bytes | bytearray) -> None:
        left = memoryview(data)
        while left:
            if self._filled == self._part_bytes:
                self._ended.append(self._part.digest())
                self._part, self._filled = hashlib.md5(usedforsecurity=False), 0
            piece = left[: self._part_bytes - self._filled]
            self._part.update(piece)
            self._filled += len(piece)
            left = left[len(piece) :]

    def says(self, told: str | None) -> bool:
        """Whether a store's ETag is that of these bytes."""
        if not self._ended:
            return (told or "").strip('"') == self._part.hexdigest()
        parts = [*self._ended, self._part.digest()]
        whole = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
        return (told or "").strip('"') == f"{whole}-{len(parts)}"
