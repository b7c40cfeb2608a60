"""What a deletion takes, and what it leaves."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from farm.schemas.base import Answer, Digest, Said
from farm.schemas.storage import Blob

_EXAMPLE: dict[str, Any] = {
    "what": "digits@7",
    "dry_run": True,
    "refused": ["prod names digits@7: move it first, or delete it"],
    "versions": ["digits@7"],
    "engines": [
        {
            "id": "01m7y8mb9kssegkq",
            "model": "digits",
            "version": 7,
            "target": "tensorrt-rtx:sm_89",
            "precision": "fp16",
        }
    ],
    "rows": {"versions": 1, "engines": 1, "jobs": 4},
    "files": [{"digest": "sha256:" + "d" * 64, "bytes": 52_428_800}],
    "files_total": 1,
    "freed_bytes": 52_428_800,
    "kept": [
        {"digest": "sha256:" + "e" * 64, "bytes": 734_003_200, "by": ["source of twin@1"]},
    ],
    "kept_bytes": 734_003_200,
    "removed_bytes": 0,
}


class DeletedEngine(Answer):
    """An engine's row that goes."""

    id: str
    model: str
    version: int
    target: str
    precision: str


class Kept(Answer):
    """A file that what is deleted named, and that others name too."""

    digest: Digest
    bytes: int
    by: list[str] = Field(description="the first ten that name it, in words")


class Deletion(Answer):
    """What was deleted, or would be."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE]})

    what: str
    dry_run: bool
    refused: list[str] = Field(
        description="of a dry run: why the deletion would be refused; empty if it wouldn't"
    )
    versions: list[str]
    engines: list[DeletedEngine] = Field(description="one for each judgement of an engine")
    rows: dict[str, int] = Field(description="of each table; jobs stay as history without outputs")
    files: list[Blob] = Field(description="that nothing else refers to; the first 1000")
    files_total: int
    freed_bytes: int = Field(description="total size of these files")
    kept: list[Kept] = Field(description="files that stay, and what for; the first 100")
    kept_bytes: int
    removed_bytes: int = Field(
        description="of the freed ones, those that have left the disk already; gc removes the others"
    )


class UploadDeleted(Answer):
    """An upload that was deleted."""

    digest: Digest
    bytes: int
    uploaded_by: Said | None = Field(
        description="who last uploaded it; null if no upload was recorded"
    )
