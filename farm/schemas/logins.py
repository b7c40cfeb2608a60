"""Logins of browsers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from farm.schemas.base import Answer, Request


class LoginRequest(Request):
    """A key, or a token, that a browser is to stand for."""

    key: str = Field(max_length=2**14, examples=["farm_7k2c9qd4mx_…"])


class LoginLink(Answer):
    """A link to the farm's page."""

    url: str
    expires_at: datetime | None = Field(description="null if this farm requires no key")
