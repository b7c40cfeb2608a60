"""Where a Triton repository is kept: what ``farm sync`` needs of it, and folders. Buckets: ``buckets``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from farm.client.http import Http
from farm.client.partial import write_whole
from farm.client.progress import TransferProgress
from farm.client.triton import locked, place
from farm.registry.triton import Model


class KeptModel(Protocol):
    """A model in a repository. Names are relative to it: ``config.pbtxt``, ``7/E1.plan``."""

    def read(self, name: str) -> bytes | None:
        """A small file's content; None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file; readers see the old content or the new, never a part."""

    def place(
        self,
        http: Http,
        model: Model,
        *,
        why: Mapping[str, str],
        progress: TransferProgress | None = None,
    ) -> None:
        """Add a version's files, verified; ``config.pbtxt`` isn't among them.

        Raises:
            DigestMismatch, Unavailable
        """

    def folders(self) -> list[str]:
        """What a version's folder may be among, by name."""

    def files(self, folder: str) -> dict[str, int]:
        """File directly in a folder → its size in bytes; nothing if there is no such folder."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there."""


class Kept(Protocol):
    """A repository."""

    def model(self, name: str) -> AbstractContextManager[KeptModel]:
        """A model in it, ours alone to write.

        Raises:
            Conflict: another process writes it, or somebody else made it.
        """


class Folder:
    """A repository in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def model(self, name: str) -> Iterator[KeptModel]:
        with locked(self._path / name) as root:
            yield _FolderModel(root)


class _FolderModel:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes | None:
        path = self._root / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        write_whole(self._root / name, content)

    def place(
        self,
        http: Http,
        model: Model,
        *,
        why: Mapping[str, str],
        progress: TransferProgress | None = None,
    ) -> None:
        place(http, model, self._root, why=why, progress=progress)

    def folders(self) -> list[str]:
        return [one.name for one in self._root.iterdir() if one.is_dir() and not one.is_symlink()]

    def files(self, folder: str) -> dict[str, int]:
        path = self._root / folder
        found = path.iterdir() if path.is_dir() else ()
        return {one.name: one.stat().st_size for one in found if one.is_file()}

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        path = self._root / folder
        if path.is_dir():
            shutil.rmtree(path)
