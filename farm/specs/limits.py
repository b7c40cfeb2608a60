"""What a key may use of the farm: its limits, how they are written, and what of them is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field

from farm.errors import InvalidRequest
from farm.specs.values import Value

UNLIMITED = "unlimited"
#: From this share of a limit on its holder is warned.
NEAR = 0.8
#: Less than this is shown as zero.
LEAST_TOLD = 0.05
_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmgt]i?)?b?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Quota(StrEnum):
    """What is limited."""

    BUILDS = "builds"  #: builds in flight: queued or running
    GPU_MINUTES_DAY = "gpu_minutes_day"  #: that jobs took GPUs, on a day of UTC
    GPU_MINUTES_MONTH = "gpu_minutes_month"  #: likewise, in a month
    STORED_BYTES = "stored_bytes"  #: uploads, and what builds made of them
    REQUESTS = "requests_per_minute"  #: over all API processes

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return self.value.replace("_", "-")


def _reader(least: int, most: int, *, whole: bool = True) -> BeforeValidator:
    """Reads a limit as it comes from JSON, a command line or a form."""

    def read(value: object) -> object:
        if isinstance(value, str):
            value = _read(value.strip().lower())
        if value is None or value == UNLIMITED:
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and least <= cast("float", value) <= most):
            raise ValueError(f"takes a number from {least} to {most}, or {UNLIMITED}")
        if whole and value != int(cast("float", value)):
            raise ValueError("takes a whole number")
        return int(cast("float", value)) if whole else float(cast("float", value))

    return BeforeValidator(read)


def _read(text: str) -> object:
    """``50gb`` → 50,000,000,000."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    unit = found[2] or ""
    return float(found[1]) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[:1]]


_MOST = 2**53
_Unlimited = Literal["unlimited"]
_Count = Annotated[Annotated[int, Field(ge=0, le=_MOST)] | _Unlimited | None, _reader(0, _MOST)]
_Minutes = Annotated[
    Annotated[float, Field(ge=0, le=10**9)] | _Unlimited | None, _reader(0, 10**9, whole=False)
]
_Rate = Annotated[Annotated[int, Field(ge=1, le=10**6)] | _Unlimited | None, _reader(1, 10**6)]
_SAME = "`unlimited` for none; null for the farm's default"


class Limits(Value):
    """What a key may use. What isn't set is as the farm's settings have it."""

    builds: _Count = Field(None, description=f"builds that are queued or running; {_SAME}")
    gpu_minutes_day: _Minutes = Field(
        None, description=f"minutes that jobs may take GPUs on a day of UTC; {_SAME}"
    )
    gpu_minutes_month: _Minutes = Field(
        None, description=f"minutes that jobs may take GPUs in a month of UTC; {_SAME}"
    )
    stored_bytes: _Count = Field(
        None, description=f"bytes of uploads and of what its builds made, or `50GB`; {_SAME}"
    )
    requests_per_minute: _Rate = Field(
        None, description=f"requests within a minute, to all API processes; {_SAME}"
    )

    def of(self, quota: Quota) -> float | None:
        """The limit on something; None for none."""
        value = getattr(self, quota)
        return None if value is None or value == UNLIMITED else cast("float", value)

    def over(self, defaults: Limits) -> Limits:
        """These limits; where one isn't set, the default."""
        if defaults == NO_LIMITS:
            return self
        set_ones = self.model_dump(exclude_none=True)
        return Limits.model_construct(**defaults.model_dump(exclude_none=True) | set_ones)

    @property
    def are_none(self) -> bool:
        """Whether nothing is limited."""
        return all(self.of(quota) is None for quota in Quota)


NO_LIMITS = Limits()


def parse(pairs: Iterable[str]) -> dict[str, str | None]:
    """``["builds=5", "stored-bytes=default"]`` → ``{"builds": "5", "stored_bytes": None}``.

    Raises:
        InvalidRequest: naming what can be limited.
    """
    found: dict[str, str | None] = {}
    for pair in (part for one in pairs for part in one.split(",") if part.strip()):
        name, equals, value = (part.strip().lower() for part in pair.partition("="))
        try:
            quota = Quota(name.replace("-", "_"))
        except ValueError:
            equals = ""
        if not (equals and value):
            names = ", ".join(one.option for one in Quota)
            raise InvalidRequest(
                f"{pair!r} isn't a limit",
                hint=f"use NAME=NUMBER, NAME=unlimited or NAME=default: {names}",
            )
        found[quota] = None if value == "default" else value
    return found


class Used(Value):
    """How much of something its holder uses, and how much it may."""

    quota: Quota
    used: float
    limit: float | None
    reserved: float = 0.0  #: that jobs which haven't ended are expected to use beyond that

    @property
    def is_near(self) -> bool:
        """Whether it is time to warn."""
        return self.limit is not None and self.used + self.reserved >= NEAR * self.limit


def near(use: Iterable[Used]) -> list[str]:
    """Warnings, in words."""
    return [f"{told(one)}: {ADVICE[one.quota]}" for one in use if one.is_near]


def told(one: Used) -> str:
    """``4 of 5 builds in flight``."""
    limit = "unlimited" if one.limit is None else number(one.quota, one.limit)
    said = f"{number(one.quota, one.used)} of {limit} {NOUNS[one.quota]}"
    if one.reserved < LEAST_TOLD:
        return said
    more = number(one.quota, one.reserved)
    return f"{said}, and {more} more reserved for jobs that are queued or running"


def number(quota: Quota, value: float) -> str:
    """``12``, ``1.5``; of bytes ``1.5 GB``."""
    if quota is not Quota.STORED_BYTES:
        return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


NOUNS: Mapping[Quota, str] = {
    Quota.BUILDS: "builds in flight",
    Quota.GPU_MINUTES_DAY: "GPU minutes today (UTC)",
    Quota.GPU_MINUTES_MONTH: "GPU minutes this month (UTC)",
    Quota.STORED_BYTES: "stored",
    Quota.REQUESTS: "requests a minute",
}
#: What its holder can do, near the limit or at it.
ADVICE: Mapping[Quota, str] = {
    Quota.BUILDS: "wait for one to end, or cancel one: farm builds, farm cancel ID",
    Quota.GPU_MINUTES_DAY: "the next day begins at 00:00 UTC; builds for cpu take no GPU",
    Quota.GPU_MINUTES_MONTH: "the next month begins on its first day, 00:00 UTC; builds for cpu take no GPU",
    Quota.STORED_BYTES: "delete uploads that you don't need (farm delete DIGEST), or ask an administrator to "
    "delete engines or versions",
    Quota.REQUESTS: "send fewer requests: follow builds by their events instead of polling",
}


def resets_at(quota: Quota, at: datetime) -> datetime | None:
    """When what is used of something begins at zero again."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if quota is Quota.GPU_MINUTES_DAY:
        return day + timedelta(days=1)
    if quota is Quota.GPU_MINUTES_MONTH:
        return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return None
