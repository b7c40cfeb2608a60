"""Whether a key's limits let it have new work.

A refusal is an error in the transaction that would make the work, and so leaves nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.errors import QuotaExceeded
from farm.quotas.reserved import Expects
from farm.quotas.use import Holder, use
from farm.specs import limits, queues
from farm.specs.limits import Quota, Used

_LOCK = 0x66726D71  # an arbitrary constant: the first key of Postgres's advisory locks


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked for.

    Parameters:
        builds: how many more builds would be in flight.
        queues: those in which new jobs would be.
        bytes: that would be uploaded for it.
        gpu_s: for which jobs that aren't in line yet are expected to take GPUs.
    """

    builds: int = 0
    queues: Collection[str] = ()
    bytes: int = 0
    gpu_s: float = 0.0


def admit(session: Session, holder: Holder | None, work: Work, expects: Expects) -> list[str]:
    """Refuse what is beyond a key's limits; else say which of them it is near to.

    Parameters:
        work: which this unit of work has made already. Of one key, such units of work end one after another:
            two can't both take the last place.

    Raises:
        QuotaExceeded
    """
    if holder is None:
        return []
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer
        session.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(holder.client))))
    session.flush()
    found = use(session, holder, expects)
    for one in found:
        if _is_beyond(one, work):
            raise refusal(holder, one)
    return limits.near(found)


def foresee(
    session: Session, holder: Holder | None, work: Work, expects: Expects
) -> tuple[str | None, list[str]]:
    """Why ``admit`` would refuse this work, if it would, and else what it would warn of."""
    if holder is None:
        return None, []
    more = {Quota.BUILDS: work.builds, Quota.STORED_BYTES: work.bytes}
    minutes = dict.fromkeys((Quota.GPU_MINUTES_DAY, Quota.GPU_MINUTES_MONTH), work.gpu_s / 60)
    found = [
        one.model_copy(
            update={
                "used": one.used + more.get(one.quota, 0),
                "reserved": one.reserved + minutes.get(one.quota, 0.0),
            }
        )
        for one in use(session, holder, expects)
    ]
    for one in found:
        is_too_large = one.quota is Quota.STORED_BYTES and work.bytes and _is_over(one)
        if is_too_large or _is_beyond(one, work):
            err = refusal(holder, one)
            return f"{err.detail}: {err.hint}", []
    return None, limits.near(found)


def _is_beyond(one: Used, work: Work) -> bool:
    """Whether this work, which counts already, is beyond a limit.

    How large outputs are is known when jobs end: what is left of the bytes lets one more build begin. So do
    minutes of GPUs where no job like the build's has run.
    """
    if one.limit is None:
        return False
    if one.quota is Quota.BUILDS:
        return bool(work.builds) and _is_over(one)
    if one.quota is Quota.STORED_BYTES:
        return bool(work.queues) and one.used >= one.limit
    is_spent = one.used >= one.limit or one.used + one.reserved > one.limit
    return is_spent and any(map(queues.takes_gpu, work.queues))


def _is_over(one: Used) -> bool:
    return one.limit is not None and one.used > one.limit


def refusal(holder: Holder, one: Used) -> QuotaExceeded:
    """The error for a key that has used up a limit."""
    used = one
    if one.quota is Quota.BUILDS and one.limit is not None:  # this one doesn't count
        used = one.model_copy(update={"used": min(one.used, one.limit)})
    return quota_exceeded(holder.key_id, holder.name, used)


def quota_exceeded(key_id: str, name: str, one: Used, more: str = "") -> QuotaExceeded:
    """The error, with what its holder or an administrator can do."""
    err = QuotaExceeded(
        f"the key {name} has {limits.told(one)}{more}",
        hint=f"{limits.ADVICE[one.quota]}; an administrator can raise it: farm keys limits {key_id} "
        f"{one.quota.option}=…",
    )
    err.quota = one.quota
    return err
