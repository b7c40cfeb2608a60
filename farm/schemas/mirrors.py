"""Copies of other farms' versions."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from farm.schemas.base import Answer, Digest, Request
from farm.specs.repositories import LONGEST_REPOSITORY

_MOST_KEYS = 16
_MAX_PEM_CHARS = 4096


def _address(text: str) -> str:
    """An address that says where a farm is and nothing else: it is shown to everybody."""
    try:
        found = urlsplit(text)
        is_plain = found.scheme in ("http", "https") and bool(found.hostname)
        is_plain = is_plain and found.username is None and not found.query and not found.fragment
    except ValueError:
        is_plain = False
    if not is_plain:
        raise ValueError("the other farm's address: http(s)://HOST[:PORT], without credentials")
    return text.rstrip("/")


Address = Annotated[
    str,
    StringConstraints(max_length=200, pattern=r"^[!-~]+$"),
    AfterValidator(_address),
    Field(examples=["https://farm.example.com"]),
]


class MirrorRequest(Request):
    """A version of another farm that lies in a repository of this one, and whose word it is."""

    repository: Annotated[str, StringConstraints(max_length=LONGEST_REPOSITORY)] = Field(
        description="where it was pushed", examples=["mirror/digits"]
    )
    digest: Digest = Field(description="of the version's index")
    farm: Address = Field(description="the farm that it is of")
    signing_keys: list[Annotated[str, StringConstraints(max_length=_MAX_PEM_CHARS)]] = Field(
        [],
        max_length=_MOST_KEYS,
        description="that farm's public signing keys, in PEM, for which the caller vouches: each engine "
        "needs a signature by one of them",
    )
    unsigned: bool = Field(
        False, description="believe what the engines' manifests say, though nobody signed it"
    )
    new_inputs: bool = Field(
        False,
        description="accept a new version with other inputs or outputs than the one before it",
    )

    @model_validator(mode="after")
    def _believes_somebody(self) -> MirrorRequest:
        if bool(self.signing_keys) == self.unsigned:
            raise ValueError("pass the other farm's signing_keys, or else unsigned: true")
        return self


class MirroredEngine(Answer):
    """An engine of the other farm in this one's registry."""

    id: str = Field(description="here")
    origin: str = Field(description="its id on the other farm")
    is_new: bool


class LeftOut(Answer):
    """An engine of the other farm that isn't in this one's registry."""

    origin: str = Field(description="its id on the other farm")
    why: str


class Registered(Answer):
    """A version of another farm in this one's registry."""

    model: str
    version: int = Field(description="here; it may have another number on the other farm")
    engines: list[MirroredEngine]
    left_out: list[LeftOut] = Field(
        description="of whose work this farm has a result of its own, or is about to"
    )


class Mirrored(Answer):
    """A version that was copied into a repository."""

    repository: str
    tag: str = Field(description="the version's: v7")
    digest: Digest = Field(description="of the index, the same on both farms")
    manifests: int = Field(description="manifests that the version has: engines, source, reports")
    blobs: int = Field(description="blobs that weren't there yet")
    bytes: int = Field(description="size of these blobs")
    registered: Registered | None = Field(
        None, description="what pulls get of it; null if it was only copied"
    )
