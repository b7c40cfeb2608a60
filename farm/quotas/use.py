"""What a key uses now of what may be limited, but requests (`rates`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database import gpu_times
from farm.database.base import now
from farm.database.tables import IS_RUNNING, ApiKey, Build, Job, Upload
from farm.specs import queues
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


def use(session: Session, holder: Holder) -> list[Used]:
    """What a key uses of each, and its limit."""
    today, month = _gpu_minutes(session, holder.client)
    used = {
        Quota.BUILDS: float(_builds(session, holder.client)),
        Quota.GPU_MINUTES_DAY: today,
        Quota.GPU_MINUTES_MONTH: month,
        Quota.STORED_BYTES: float(_stored(session, holder)),
    }
    limits = holder.limits
    return [Used(quota=one, used=value, limit=limits.of(one)) for one, value in used.items()]


def _builds(session: Session, client: str) -> int:
    live = Build.state.in_(BUILD_LIVE)
    return session.scalar(select(func.count(Build.id)).where(Build.client == client, live)) or 0


def _gpu_minutes(session: Session, client: str) -> tuple[float, float]:
    """Minutes of GPUs, today and this month: of jobs that have ended, and of those that run."""
    at = now()
    running = session.execute(
        select(Job.queue, Job.started_at).where(IS_RUNNING, Job.client == client)
    ).all()
    so_far_s = sum(_age_s(row.started_at, at) for row in running if queues.takes_gpu(row.queue))
    today = gpu_times.since(session, client, at.date())
    month = gpu_times.since(session, client, at.date().replace(day=1))
    return (today + so_far_s) / _MINUTE_S, (month + so_far_s) / _MINUTE_S


def _age_s(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max(0.0, (at - since).total_seconds())


def _stored(session: Session, holder: Holder) -> int:
    arriving = select(func.sum(Upload.bytes)).where(
        Upload.owner == holder.key_id, Upload.digest.is_(None)
    )
    return artifacts.owned_bytes(session, holder.client) + int(session.scalar(arriving) or 0)
