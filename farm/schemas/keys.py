"""API keys, and the audit of what they were used for."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from farm.schemas.base import Answer, Page, Request, Said
from farm.specs import texts
from farm.specs.limits import NO_LIMITS, Limits, Quota
from farm.specs.scopes import Scope


class KeyRequest(Request):
    """A key to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["submit"], "expires_in_s": 7_776_000}]
        },
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")] = Field(
        description="who or what the key is for"
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    limits: Limits = NO_LIMITS
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 366 * 86400)] | None = Field(
        None, description="lifetime in seconds; null for unlimited"
    )


class KeyView(Answer):
    """A key, without what makes it one."""

    id: str = Field(description="the part of the key that isn't secret", examples=["7k2c9qd4mx"])
    name: str
    issuer: str | None = Field(
        None, description="whose tokens for this subject count as the key; null of a key"
    )
    subject: Said | None = Field(None, description="whom its issuer's tokens are for")
    scopes: list[Scope] = Field(description="none of a subject: its tokens say")
    created_at: datetime
    created_by: Said
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    revoked_at: datetime | None
    limits: Limits = Field(
        NO_LIMITS, description="its own; what isn't set is as the farm's settings have it"
    )

    @field_validator("limits", mode="before")
    @classmethod
    def _of_row(cls, given: object) -> object:
        return given or NO_LIMITS


class NewKey(KeyView):
    """A key that was just made."""

    key: str = Field(description="the key itself, shown only once")


class KeyPage(Page):
    items: list[KeyView]


class LimitView(Answer):
    """What a key may use of something, and uses."""

    quota: Quota
    limit: float | None = Field(description="null for no limit")
    used: float
    reserved: float = Field(
        0.0,
        description="what jobs that are queued or running are expected to use beyond that: minutes of GPUs",
    )
    is_near: bool = Field(
        description="whether what is used and reserved is four fifths of it, or more"
    )
    resets_at: datetime | None = Field(
        None,
        description="when what is used begins at zero again; null if that isn't a matter of time",
    )
    told: str = Field(examples=["4 of 5 builds in flight"])


class KeyLimits(Answer):
    """A key's limits, and what it uses of them."""

    key: str = Field(description="the key's id", examples=["7k2c9qd4mx"])
    own: Limits = Field(description="set for this key")
    limits: list[LimitView] = Field(description="what holds, with the farm's defaults")


class Me(Answer):
    """Who the farm takes the caller for, and what it may do and use."""

    key: str | None = Field(description="the key's id; null without one")
    name: Said
    scopes: list[Scope]
    expires_at: datetime | None = None
    limits: list[LimitView] = Field(description="none without a key")
    warnings: list[str] = Field(description="limits that are four fifths used, or more")


class AuditEntry(Answer):
    """A change that somebody made."""

    id: int
    at: datetime
    key_id: str | None = Field(description="the key used for the change; null without one")
    who: Said = Field(description="the key's name, or the user of a local command")
    label: Said = Field(description="the client's own name: `Farm-Client`")
    address: str
    action: str = Field(examples=["submit"])
    object: Said = Field(
        description="what was changed: a build, a blob, a key", examples=["01m7y8mb9kssegkq"]
    )
    details: Annotated[dict[str, Any], BeforeValidator(texts.escaped)] | None


class AuditPage(Page):
    items: list[AuditEntry]
