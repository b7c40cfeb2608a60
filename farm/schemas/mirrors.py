"""Copies of other farms' versions."""

from __future__ import annotations

from pydantic import Field

from farm.schemas.base import Answer, Digest


class Mirrored(Answer):
    """A version that was copied into a repository."""

    repository: str
    tag: str = Field(description="the version's: v7")
    digest: Digest = Field(description="of the index, the same on both farms")
    manifests: int = Field(description="manifests that the version has: engines, source, reports")
    blobs: int = Field(description="blobs that weren't there yet")
    bytes: int = Field(description="size of these blobs")
