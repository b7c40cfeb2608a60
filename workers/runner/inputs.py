"""What a job reads: files of its own for as long as it runs.

The store rewrites a blob whenever its bytes are uploaded again, and the sandbox lets a job open files,
not names: a job that was allowed the blob of before couldn't open the one of now.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from farm.errors import StorageFull, StorageUnavailable


def hold(blobs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Second names for blobs, in a folder that is made; copies, where the file system gives none.

    Parameters:
        blobs: role → the blob's file, in the store.

    Raises:
        StorageFull: there was no room for a copy.
        StorageUnavailable: a blob can't be read, or went while it was looked at.
    """
    folder.mkdir(parents=True)
    return {role: _held(blob, folder / role) for role, blob in blobs.items()}


def _held(blob: Path, held: Path) -> Path:
    try:
        os.link(blob, held)
    except FileNotFoundError as err:
        raise _gone(err) from err
    except OSError:  # another file system, or another user's file
        try:
            shutil.copyfile(blob, held)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no space for a job's copy of {blob.name}") from err
            raise _gone(err) from err
    return held


def require(files: Iterable[Path]) -> None:
    """Raise if one can't be read: a stage that failed then did so for its disk.

    Raises:
        StorageUnavailable
    """
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                file.read(1)
        except OSError as err:
            raise _gone(err) from err


def _gone(err: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"the artifact store can't be read: {err}")
