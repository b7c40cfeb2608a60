"""What the store holds, by kind and by model."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from farm.schemas.base import Answer


class FileKind(StrEnum):
    """What a file is for. One that several name counts for the first of these alone."""

    SOURCES = "sources"
    ENGINES = "engines"
    DATA = "data"  #: for calibration and evaluation
    PLUGINS = "plugins"
    PUSHED = "pushed"  #: by clients of OCI
    REPORTS = "reports"  #: layers, measurements
    TIMING_CACHES = "timing-caches"
    INTERMEDIATES = "intermediates"  #: typed ONNX and the like: made again if needed
    UNREFERENCED = "unreferenced"  #: uploads that no build used, and what deletions left


class Files(Answer):
    files: int
    bytes: int


class ModelUsage(Answer):
    """What a model takes."""

    model: str
    files: int
    bytes: int = Field(description="of all files that it names, each once")
    shared_bytes: int = Field(description="of these, what other models name too")
    kinds: dict[FileKind, Files]


class Usage(Answer):
    """What takes the store's disk. Each file counts once."""

    files: int
    bytes: int
    kinds: dict[FileKind, Files]
    models: list[ModelUsage] = Field(description="largest first; their shared bytes count for each")
    interrupted_uploads: Files
    unused_uploads: Files = Field(
        Files(files=0, bytes=0),
        description="what counts for the keys that uploaded it: no build has used it, or it is arriving",
    )
    unused_limit_bytes: int | None = Field(
        None, description="what a key may hold of these (FARM_MAX_UNUSED_BYTES); null for no limit"
    )
    log_bytes: int = Field(description="jobs' logs, which are in the database")
    gc: Files = Field(description="what a garbage collection would remove now")
    free_bytes: int | None = Field(description="on the store's disk; null if that has no limit")
