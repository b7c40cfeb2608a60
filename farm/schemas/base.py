"""What requests and answers have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Digest = Annotated[
    str,
    StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"),
    Field(examples=["sha256:" + "0" * 64]),
]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Request(BaseModel):
    """What a client sends. Unknown fields are refused, so that a typo is never silently dropped."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the farm answers. A client ignores fields that it doesn't know."""

    model_config = ConfigDict(from_attributes=True)


class Page(Answer):
    cursor: str | None = Field(description="pass as `cursor` for the next page; null on the last")
