"""The store: blobs, garbage collection, scrubbing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from farm.schemas.base import Answer, Digest, Request


class Blob(Answer):
    digest: Digest
    bytes: int


class BlobUpload(Answer):
    """An upload in several requests."""

    id: str
    bytes: int = Field(description="how many came so far: the next part begins there")


class BlobCheck(Answer):
    """Whether a blob's bytes are what its digest says."""

    digest: Digest
    right: bool = Field(description="false: they aren't, and it is quarantined")


class StoreProblem(Answer):
    """Why the store can't be used."""

    code: str = Field(examples=["storage-unavailable", "storage-full"])
    detail: str
    hint: str | None


class StoreView(Answer):
    """The artifact store, as the API has it."""

    id: str | None = Field(
        description="by which a worker knows that its store is this one; null if it can't be read"
    )
    address: str = Field(examples=["s3://models/farm", "/var/lib/farm/store"])
    problem: StoreProblem | None = Field(description="why it can't be used now; null if it can")
    free_bytes: int | None = Field(description="null if it has no limit, or can't be read")


class StoreCopy(Answer):
    """What a copy of a store has done, or would do."""

    source: str
    target: str
    id: str = Field(description="the farm's store's, which the target has once all is there")
    dry_run: bool
    copied: int = Field(description="files that weren't there, or would be copied")
    copied_bytes: int
    present: int = Field(description="files that were there already")
    damaged: list[str] = Field(
        description="digests of files that aren't what these say: they were left out"
    )
    complete: bool = Field(description="whether the target has all that the source had, and its id")


class GcRequest(Request):
    """What garbage collection shall take."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"dry_run": True, "older_than_s": 86400}]}
    )

    dry_run: bool = Field(False, description="only report what would be removed")
    older_than_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = Field(
        86400.0,
        description="keep blobs uploaded or requested within this time, since they may be about to be used",
    )


class HistoryReport(Answer):
    """What was forgotten, or would be, as the settings `FARM_KEEP_…` say."""

    events: int = Field(0, description="phases and changes of state of jobs")
    logs: int = Field(0, description="pieces of jobs' output")
    samples: int = Field(0, description="attempts whose samples of what they used go")
    builds: int = 0
    jobs: int = Field(0, description="that nothing which stays needs")


GC_EXAMPLE: dict[str, Any] = {
    "dry_run": False,
    "removed": [{"digest": "sha256:" + "d" * 64, "bytes": 52_428_800}],
    "removed_total": 1,
    "removed_bytes": 52_428_800,
    "uploads": 0,
    "uploads_bytes": 0,
    "kept": 14,
    "kept_bytes": 734_003_200,
    "history": {"events": 0, "logs": 0, "samples": 0, "builds": 0, "jobs": 0},
}


class GcReport(Answer):
    """What garbage collection removed, or would remove."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [GC_EXAMPLE]})

    dry_run: bool
    removed: list[Blob] = Field(description="unreferenced blobs; the first 1000")
    removed_total: int = Field(description="total number of removed blobs")
    removed_bytes: int = Field(description="total size of removed blobs")
    uploads: int = Field(description="removed files of interrupted uploads")
    uploads_bytes: int
    kept: int = Field(description="number of remaining blobs")
    kept_bytes: int
    history: HistoryReport = Field(
        HistoryReport(), description="rows of the database; files that they named go later"
    )


class ScrubReport(Answer):
    """What a scrub of the store has found."""

    checked: int = Field(description="number of blobs hashed")
    checked_bytes: int
    damaged: list[str] = Field(
        description="digests of damaged blobs, now quarantined; the first 1000"
    )
    missing: list[str] = Field(
        description="digests of blobs the farm needs and the store lacks; the first 1000"
    )
    healed: list[str] = Field(
        [],
        description="digests of damaged or missing blobs, put again from copies on the API's machine; "
        "the first 1000",
    )
