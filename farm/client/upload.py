"""Uploads: named by their sha256 first, and sent only when the farm doesn't have them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from farm.client.http import Http
from farm.client.progress import Progress
from farm.errors import DigestMismatch, InvalidRequest, NotFound, SourceRefused
from farm.schemas import Blob
from farm.sources import check
from farm.specs import SourceFormat

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20
_FORMATS = {".onnx": SourceFormat.ONNX, ".pt2": SourceFormat.PT2}
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"})
_EXPORT_HINT = (
    "export it: torch.export.save(torch.export.export(model, (example,)), 'model.pt2'), "
    "then submit model.pt2"
)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def source_format(path: Path) -> SourceFormat:
    """The format of a source file, which must look like one.

    Raises:
        SourceRefused: a pickle by its name or its bytes, or a format that the farm doesn't take.
        InvalidRequest: no such file, or not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise SourceRefused(
            f"{path.name}: a {suffix} file is a pickle, which runs code when it is loaded",
            hint=_EXPORT_HINT,
        )
    if suffix not in _FORMATS:
        raise SourceRefused(f"{path.name}: a source is an .onnx or a .pt2 file", hint=_EXPORT_HINT)
    require_file(path)
    check(path, _FORMATS[suffix])
    return _FORMATS[suffix]


def require_file(path: Path) -> None:
    """Raise InvalidRequest unless there is a file with something in it."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise InvalidRequest(f"{path} {what}", hint="check the path")
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty", hint="check the path, or write the file again")


def digest_of(path: Path, *, what: str = "", progress: Progress | None = None) -> str:
    """``sha256:…`` of a file, read once in small pieces."""
    found = hashlib.sha256()
    for chunk in _chunks(path, f"{what or 'hash'} {path.name}", progress):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def upload(http: Http, path: Path, digest: str, *, progress: Progress | None = None) -> None:
    """Give the farm a file, unless it has it.

    Raises:
        DigestMismatch: the file changed since its digest was taken.
        FarmError
    """
    if has(http, digest):
        return
    raw = bytes.fromhex(digest.removeprefix("sha256:"))
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(path.stat().st_size),
        "Repr-Digest": f"sha-256=:{base64.b64encode(raw).decode()}:",
    }
    # Repeatable: what is stored is named by its content.
    stored = http.read(
        Blob,
        "POST",
        "/v1/blobs",
        headers=headers,
        body=lambda: _chunks(path, f"upload {path.name}", progress),
    )
    if stored.digest != digest:
        raise DigestMismatch(f"the farm received {path.name} as {stored.digest}, not as {digest}")


def has(http: Http, digest: str) -> bool:
    """Whether the farm holds these bytes."""
    try:
        http.request("HEAD", f"/v1/blobs/{digest}")
    except NotFound:
        return False
    return True


def _chunks(path: Path, what: str, progress: Progress | None) -> Iterator[bytes]:
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(what, done, total)
