"""What a key uses now of what may be limited, but requests (`rates`)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database import gpu_times
from farm.database.base import now
from farm.database.tables import ApiKey, Build, Upload
from farm.quotas import reserved
from farm.quotas.reserved import Expects
from farm.specs.limits import Limits, Quota, Used
from farm.specs.states import BUILD_LIVE
from farm.store import artifacts
from farm.trust import keys
from farm.trust.callers import KEY, Caller

_MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whose limits they are."""

    key_id: str
    name: str
    limits: Limits

    @property
    def client(self) -> str:
        return f"{KEY}{self.key_id}"

    @classmethod
    def of(cls, by: Caller) -> Holder | None:
        """The caller's; None if nothing limits it."""
        if by.key_id is None or by.limits.are_none:
            return None
        return cls(key_id=by.key_id, name=by.name, limits=by.limits)

    @classmethod
    def of_client(cls, session: Session, client: str, defaults: Limits) -> Holder | None:
        """A client's (``Caller.client``), for whatever somebody else does with its builds."""
        key_id = client.removeprefix(KEY)
        row = session.get(ApiKey, key_id) if key_id != client else None
        if row is None or (limits := keys.limits_of(row, defaults)).are_none:
            return None
        return cls(key_id=row.id, name=row.name, limits=limits)


def use(session: Session, holder: Holder, expects: Expects) -> list[Used]:
    """What a key uses of each, and its limit."""
    limits = holder.limits
    found = {
        Quota.BUILDS: (float(_builds(session, holder.client)), 0.0),
        **_gpu_minutes(session, holder, expects),
        Quota.STORED_BYTES: (float(_stored(session, holder)), 0.0),
    }
    return [
        Used(quota=one, used=used, reserved=more, limit=limits.of(one))
        for one, (used, more) in found.items()
    ]


def _builds(session: Session, client: str) -> int:
    live = Build.state.in_(BUILD_LIVE)
    return session.scalar(select(func.count(Build.id)).where(Build.client == client, live)) or 0


def _gpu_minutes(
    session: Session, holder: Holder, expects: Expects
) -> dict[Quota, tuple[float, float]]:
    """Minutes of GPUs, today and this month: used by jobs that ended or run, and expected beyond that."""
    at = now()
    first_day = {
        Quota.GPU_MINUTES_DAY: at.date(),
        Quota.GPU_MINUTES_MONTH: at.date().replace(day=1),
    }
    is_limited = any(holder.limits.of(one) is not None for one in first_day)
    live = reserved.of_live_jobs(session, holder.client, at, expects if is_limited else None)
    return {
        quota: (
            (gpu_times.since(session, holder.client, day) + live.so_far) / _MINUTE_S,
            live.expected / _MINUTE_S,
        )
        for quota, day in first_day.items()
    }


def _stored(session: Session, holder: Holder) -> int:
    arriving = select(func.sum(Upload.bytes)).where(
        Upload.owner == holder.key_id, Upload.digest.is_(None)
    )
    return artifacts.owned_bytes(session, holder.client) + int(session.scalar(arriving) or 0)
