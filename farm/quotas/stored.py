"""The limit of what a key stores, as uploads take room of it."""

from __future__ import annotations

from farm.errors import QuotaExceeded
from farm.quotas.admission import quota_exceeded
from farm.specs.limits import Limits, Quota, Used
from farm.store.held import Stock
from farm.trust.callers import KEY


def stock(key_id: str, name: str, limits: Limits) -> Stock:
    """What a key stores, and may."""
    limit = limits.of(Quota.STORED_BYTES)

    def refused(used: int, more: int) -> QuotaExceeded:
        told = Used(quota=Quota.STORED_BYTES, used=float(used), limit=limit)
        return quota_exceeded(key_id, name, told, f", and this upload takes {more} bytes")

    return Stock(
        client=f"{KEY}{key_id}", limit=None if limit is None else int(limit), refused=refused
    )
