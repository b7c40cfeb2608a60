"""Yanking versions and engines."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, StringConstraints

from farm.schemas.base import Request
from farm.specs import texts


class YankRequest(Request):
    reason: Annotated[
        str,
        StringConstraints(min_length=1, max_length=1000, pattern=f"^{texts.LINE}*$"),
        BeforeValidator(texts.checked),
    ]
