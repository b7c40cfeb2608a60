"""Uploads: hashed first, and sent only if the farm doesn't have them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from farm.client.http import Http
from farm.client.progress import TransferProgress
from farm.errors import DigestMismatch, InvalidRequest, NotFound
from farm.formats.packs import Pack
from farm.formats.shards import Shards
from farm.schemas.storage import Blob

_CHUNK_BYTES = 1 << 20

Content = Path | Pack | Shards


def require_file(path: Path) -> None:
    """Raise InvalidRequest unless the file exists and isn't empty."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise InvalidRequest(f"{path} {what}", hint="check the path")
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty", hint="check the path, or write the file again")


def digest_of(content: Content, *, what: str = "", progress: TransferProgress | None = None) -> str:
    """``sha256:…`` of a file or a pack, read once in small chunks."""
    found = hashlib.sha256()
    for chunk in _chunks(content, f"{what or 'hash'} {content.name}", progress):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def upload(
    http: Http, content: Content, digest: str, *, progress: TransferProgress | None = None
) -> None:
    """Upload a file or a pack unless the farm has it.

    Raises:
        DigestMismatch: the file changed after it was hashed.
        FarmError
    """
    if has(http, digest):
        return
    raw = bytes.fromhex(digest.removeprefix("sha256:"))
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size_of(content)),
        "Repr-Digest": f"sha-256=:{base64.b64encode(raw).decode()}:",
    }
    # Repeatable: blobs are named by their content.
    stored = http.read(
        Blob,
        "POST",
        "/v1/blobs",
        headers=headers,
        body=lambda: _chunks(content, f"upload {content.name}", progress),
    )
    if stored.digest != digest:
        raise DigestMismatch(
            f"the farm received {content.name} as {stored.digest}, not as {digest}"
        )


def has(http: Http, digest: str) -> bool:
    """Whether the farm holds these bytes."""
    try:
        http.request("HEAD", f"/v1/blobs/{digest}")
    except NotFound:
        return False
    return True


def size_of(content: Content) -> int:
    """The bytes of a file or a pack."""
    return content.stat().st_size if isinstance(content, Path) else content.total_bytes


def _chunks(content: Content, what: str, progress: TransferProgress | None) -> Iterator[bytes]:
    done, total = 0, size_of(content)
    for chunk in _read(content) if isinstance(content, Path) else content.chunks():
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(what, done, total)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
