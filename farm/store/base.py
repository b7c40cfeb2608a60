"""What a store of artifacts does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

ASIDE = "aside-"


@dataclass(frozen=True, kw_only=True)
class Stored:
    digest: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of the store, as it was when it was looked at."""

    path: Path
    bytes: int
    put_at: datetime  #: when it was last put or written to

    @property
    def digest(self) -> str:
        """Of a blob, or of one that was set aside."""
        return f"sha256:{self.path.name.removeprefix(ASIDE)}"


class Store(Protocol):
    """Where artifacts live."""

    def take(self, source: Path) -> Stored:
        """Keep a file; it's gone from where it was."""
        ...

    def has(self, digest: str) -> bool: ...

    def path(self, digest: str) -> Path:
        """A local file with the blob, to read and never to write.

        Raises:
            NotFound, StorageUnavailable
        """
        ...
