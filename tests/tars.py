"""Tars for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def tarred(path: Path, files: Mapping[str, bytes], *more: tarfile.TarInfo) -> Path:
    """An uncompressed tar with these files in this order, and further entries without content."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in more:
            archive.addfile(entry)
    return path
