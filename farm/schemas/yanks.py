"""Yanking versions and engines."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from farm.schemas.base import Request


class YankRequest(Request):
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1000, strip_whitespace=True)]
