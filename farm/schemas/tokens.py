"""Join tokens, and what a machine gets that joins by one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from farm.schemas.base import Answer, Page, Request, Said
from farm.stages import JobKind


class TokenRequest(Request):
    """A join token to be made."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"expires_in_s": 3600, "uses": 1}]}
    )

    expires_in_s: Annotated[int, Field(ge=60, le=30 * 86400)] = Field(
        3600, description="lifetime in seconds, at most 30 days"
    )
    uses: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="how many machines may join by it"
    )


class TokenView(Answer):
    """A join token, without what makes it one."""

    id: str = Field(description="the part of the token that isn't secret", examples=["7k2c9qd4mx"])
    uses: int = Field(description="how many machines may join by it")
    used: int
    created_at: datetime
    created_by: Said
    expires_at: datetime
    revoked_at: datetime | None


class NewToken(TokenView):
    """A join token that was just made."""

    token: str = Field(description="the token itself, shown only once")


class TokenPage(Page):
    items: list[TokenView]


class JoinRequest(Request):
    """A machine that wants to work for the farm."""

    token: Annotated[str, StringConstraints(max_length=200)] = Field(examples=["join_7k2c9qd4mx_…"])
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")] = Field(
        description="the machine's, which no other has", examples=["gpu-box-7"]
    )
    holder: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")] | None = Field(
        None, description="the id of the machine's home: a machine may join again under its name"
    )


class SharedSettings(Answer):
    """Settings that a worker has as the API has them."""

    lease_ttl_s: float
    worker_ttl_s: float
    max_attempts: int
    retry_first_s: float
    retry_longest_s: float
    job_timeout_s: float
    stage_timeouts_s: dict[JobKind, float]
    cpu_timing_share: float
    plugin_keys: tuple[str, ...]


class JoinView(Answer):
    """What a worker needs of the farm."""

    version: str = Field(description="the farm's")
    key_id: str
    key: str = Field(description="with the scope `work`, shown only once")
    broker_url: str
    database_url: str
    store: str | None = Field(description="null if it is the API, at the address that was joined")
    settings: SharedSettings
