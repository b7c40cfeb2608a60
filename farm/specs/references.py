"""How a version of a model is referred to: by its number or an alias, as in ``digits@7``, ``digits@prod``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from farm.errors import InvalidRequest
from farm.specs.words import AnyCase, lowered

#: What pulls take by default.
PROD = "prod"
LONGEST_ALIAS = 40
#: None that could be a version: v7.
_ALIAS = r"^([a-uw-z][a-z0-9-]*|v[a-z-][a-z0-9-]*)$"


def _alias(value: Any) -> Any:
    value = lowered(value)
    if isinstance(value, str) and not (re.fullmatch(_ALIAS, value) and len(value) <= LONGEST_ALIAS):
        raise ValueError(
            f"{value[:LONGEST_ALIAS]!r} can't be an alias: use a lower-case letter, then up to "
            f"{LONGEST_ALIAS - 1} lower-case letters, digits and '-', and nothing like v7"
        )
    return value


AliasName = Annotated[
    str,
    StringConstraints(pattern=_ALIAS, max_length=LONGEST_ALIAS),
    BeforeValidator(_alias),
    Field(examples=[PROD]),
]
VersionOrAlias = Annotated[
    str,
    StringConstraints(pattern=rf"^v?[1-9][0-9]{{0,8}}$|{_ALIAS}", max_length=LONGEST_ALIAS),
    AnyCase,
    Field(examples=["7", PROD]),
]
_NUMBER = re.compile(r"v?(\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One of the two, or neither for the default."""

    version: int | None = None
    alias: str | None = None


def parse(text: str) -> Reference:
    """``7`` and ``v7`` are a version, anything else an alias, in any case.

    Raises:
        InvalidRequest: it can't be either.
    """
    said, text = text, lowered(text)
    number = _NUMBER.fullmatch(text)
    if number and int(number[1]) > 0:
        return Reference(version=int(number[1]))
    if number or len(text) > LONGEST_ALIAS or not re.fullmatch(_ALIAS, text):
        raise InvalidRequest(
            f"{said!r} is neither a version nor an alias",
            hint="a version is 7 or v7, an alias is a letter, then lower-case letters, digits and -: prod",
        )
    return Reference(alias=text)


def split(model: str, version: int | None = None) -> tuple[str, Reference]:
    """``digits@prod`` → ``digits`` and its alias.

    Parameters:
        version: where the model has no ``@``.

    Raises:
        InvalidRequest: what follows the ``@`` can't be a version or an alias, or a version is given twice.
    """
    name, at, reference = model.partition("@")
    if not at:
        return name, Reference(version=version)
    if version is not None:
        raise InvalidRequest(
            f"{model!r} says which version already", hint=f"omit the version {version} beside it"
        )
    return name, parse(reference)
