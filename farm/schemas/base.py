"""What requests and answers have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from farm.specs import digests, texts

Digest = Annotated[
    str,
    StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"),
    BeforeValidator(digests.checked),
    Field(examples=["sha256:" + "0" * 64]),
]


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_NAME, value):
        raise ValueError(
            f"{value[:100]!r} can't be a model's name: use up to 100 letters, digits, '.', '_' and '-', "
            "with a letter or a digit first"
        )
    return value


Name = Annotated[str, StringConstraints(pattern=_NAME), BeforeValidator(_name)]


#: What somebody typed, as it is shown to others: stored before it was checked, it may hold controls.
Said = Annotated[str, BeforeValidator(texts.escaped)]
SaidLabels = Annotated[dict[str, str], BeforeValidator(texts.escaped)]


class Request(BaseModel):
    """What a client sends. Unknown fields are refused, so that a typo is never silently dropped."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the farm answers. A client ignores fields that it doesn't know."""

    model_config = ConfigDict(from_attributes=True)


class Page(Answer):
    cursor: str | None = Field(description="pass as `cursor` for the next page; null on the last")
