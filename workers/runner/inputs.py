"""A job's input files, held under its own names while it runs.

The store replaces a blob's file whenever its bytes are uploaded again, and the sandbox grants files, not
names: a job granted the old file couldn't open the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from farm.errors import StorageFull, StorageUnavailable
from farm.store.base import Blobs


def hold(store: Blobs, blobs: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Create the folder with a hard link to each blob, or a copy where the file system has no links.

    A cache removes no file that has another name.

    Parameters:
        blobs: role → digest.

    Raises:
        NotFound, BlobDamaged
        StorageFull: there was no room for a copy.
        StorageUnavailable: a blob can't be read, or disappeared meanwhile.
    """
    folder.mkdir(parents=True)
    held = {}
    for role, digest in blobs.items():
        with store.local(digest) as blob:
            held[role] = _held(blob, folder / role)
    return held


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
    """Raise if one can't be read: a stage that failed then failed because of its disk.

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
