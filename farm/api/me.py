"""The caller: who it is to the farm, and what it may use and uses."""

from __future__ import annotations

from collections.abc import Iterable

from anyio import to_thread
from fastapi import APIRouter, Response

from farm.api.services import By, Farm, Services, answer
from farm.database.base import now
from farm.database.tables import ApiKey
from farm.quotas.use import Holder, use
from farm.schemas.keys import KeyLimits, LimitView, Me
from farm.specs import limits
from farm.specs.limits import Limits, Quota, Used
from farm.trust import keys

router = APIRouter(prefix="/v1/me", tags=["keys"])


@router.get("", summary="Show the caller", response_model=Me)
async def me(farm: Farm, by: By) -> Response:
    """The caller's key, its scopes, what it may use and what it uses."""
    if by.key_id is None:
        found = Me(key=None, name=by.name, scopes=sorted(by.scopes), limits=[], warnings=[])
        return answer(found)
    row, used = await _use(farm, by.key_id, by.limits)
    found = Me(
        key=row.id,
        name=row.name,
        scopes=sorted(by.scopes),
        expires_at=row.expires_at,
        limits=views(used),
        warnings=limits.near(used),
    )
    return answer(found)


async def limits_of(farm: Services, key_id: str) -> KeyLimits:
    """A key's limits, and what it uses.

    Raises:
        NotFound
    """
    return (await shown_limits(farm, key_id))[1]


async def shown_limits(farm: Services, key_id: str) -> tuple[ApiKey, KeyLimits]:
    """A key, its limits, and what it uses.

    Raises:
        NotFound
    """
    row, used = await _use(farm, key_id)
    own = Limits.model_validate(row.limits or {})
    return row, KeyLimits(key=row.id, own=own, limits=views(used))


async def _use(
    farm: Services, key_id: str, held_to: Limits | None = None
) -> tuple[ApiKey, list[Used]]:
    """What a key uses.

    Parameters:
        held_to: its limits, if known: a token's may depend on what it allows.
    """

    def read() -> tuple[ApiKey, Holder, list[Used]]:
        with farm.db.read() as session:
            row = keys.get(session, key_id)
            own = held_to or keys.limits_of(row, farm.settings.limits)
            holder = Holder(key_id=row.id, name=row.name, limits=own)
            return row, holder, use(session, holder, farm.expected_s)

    row, holder, used = await to_thread.run_sync(read)
    limit = holder.limits.of(Quota.REQUESTS)
    if limit is None:
        return row, [*used, Used(quota=Quota.REQUESTS, used=0.0, limit=None)]
    return row, [*used, (await farm.rates.look(row.id, int(limit))).used]


def views(used: Iterable[Used]) -> list[LimitView]:
    at = now()
    return [
        LimitView(
            quota=one.quota,
            limit=one.limit,
            used=one.used,
            reserved=one.reserved,
            is_near=one.is_near,
            resets_at=limits.resets_at(one.quota, at),
            told=limits.told(one),
        )
        for one in used
    ]
