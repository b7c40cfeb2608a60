"""Digests as names of blobs."""

from __future__ import annotations

import hashlib
import re
from io import BufferedRandom, BufferedReader
from pathlib import Path

from farm.errors import DigestMismatch, NotFound

NAME = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(rf"sha256:{NAME.pattern}")


def name_of(digest: str) -> str:
    """A digest's 64 digits.

    Raises:
        NotFound: it isn't a digest.
    """
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"{digest!r} isn't a sha256 digest")
    return digest.removeprefix("sha256:")


def of_file(file: BufferedReader | BufferedRandom) -> str:
    """The digest of all of an open file."""
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def of_path(path: Path) -> str:
    with path.open("rb") as file:
        return of_file(file)


def check(digest: str, expected: str | None) -> None:
    """Raise DigestMismatch if other bytes were announced."""
    if expected is not None and digest != expected:
        raise DigestMismatch(f"announced {expected}, received {digest}; nothing was stored")


def absent(digest: str) -> NotFound:
    return NotFound(f"the store has no blob {digest}", hint="upload it: POST /v1/blobs")
