"""The farm's keys: creates, lists, revokes and checks them."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import ApiKey
from farm.errors import Conflict, NotFound
from farm.specs.limits import NO_LIMITS, Limits
from farm.specs.scopes import Scope
from farm.trust import audit, credentials, pages
from farm.trust.callers import KEY, Caller


def create(
    session: Session,
    *,
    name: str,
    scopes: Collection[Scope],
    by: Caller,
    expires_in_s: float | None = None,
    limits: Limits = NO_LIMITS,
) -> tuple[ApiKey, str]:
    """Create a key.

    Returns:
        Its row, and the key itself, which can't be recovered later.
    """
    text, key_id = credentials.new()
    at = now()
    row = ApiKey(
        id=key_id,
        name=name,
        digest=credentials.digest_of(text),
        scopes=sorted(set(scopes)),
        limits=limits.model_dump(exclude_none=True) or None,
        created_at=at,
        created_by=by.name,
        expires_at=None if expires_in_s is None else at + timedelta(seconds=expires_in_s),
    )
    session.add(row)
    session.flush()
    told = {"limits": row.limits} if row.limits else {}
    audit.record(session, by, "key.create", key_id, name=name, scopes=row.scopes, **told)
    return row, text


def limits_of(
    row: ApiKey, defaults: Limits, scopes: Collection[Scope | str] | None = None
) -> Limits:
    """A key's limits, and where it has none the farm's; those don't hold for administrators and workers.

    Parameters:
        scopes: by default the key's.
    """
    own = Limits.model_construct(**row.limits) if row.limits else NO_LIMITS
    is_of_the_farm = not {Scope.ADMIN, Scope.WORK}.isdisjoint(
        row.scopes if scopes is None else scopes
    )
    return own if is_of_the_farm else own.over(defaults)


def limit(session: Session, key_id: str, changes: Limits, *, by: Caller) -> ApiKey:
    """Change the limits that are set in ``changes``, be it to None for the farm's default.

    Raises:
        NotFound
    """
    row = session.get(ApiKey, key_id, with_for_update=True) or get(session, key_id)
    before = row.limits or {}
    changed = changes.model_dump(exclude_unset=True)
    after = {name: value for name, value in (before | changed).items() if value is not None}
    if after != before:
        row.limits = after or None
        session.flush()
        audit.record(session, by, "key.limits", row.id, name=row.name, limits=after)
    return row


def client_name(session: Session, client: str) -> str:
    """What to call a client (``Caller.client``): a key by its name."""
    key_id = client.removeprefix(KEY)
    row = session.get(ApiKey, key_id) if key_id != client else None
    return row.name if row is not None else client


def revoke(session: Session, key_id: str, *, by: Caller) -> ApiKey:
    """Revoke a key. Does nothing if it is already revoked.

    Raises:
        NotFound
        Conflict: it is the last one that can create others.
    """
    # Lock all admin keys, in a fixed order: two that revoke each other leave one.
    admins = [
        row
        for row in session.scalars(_live().order_by(ApiKey.id).with_for_update())
        if Scope.ADMIN in row.scopes
    ]
    row = get(session, key_id)
    if row.revoked_at is not None:
        return row
    if [one.id for one in admins] == [key_id]:
        raise Conflict(
            "this is the only key that can create others",
            hint="create another first: farm keys create --scope admin",
        )
    end(session, row, by=by)
    return row


def end(session: Session, row: ApiKey, *, by: Caller) -> None:
    """Revoke this key, even if it is the last."""
    row.revoked_at = now()
    session.flush()
    audit.record(session, by, "key.revoke", row.id, name=row.name)


def get(session: Session, key_id: str) -> ApiKey:
    """The key with this id.

    Raises:
        NotFound
    """
    row = session.get(ApiKey, key_id)
    if row is None:
        raise NotFound(
            f"there is no key {key_id!r}", hint="`farm keys list` lists them by their ids"
        )
    return row


def page(session: Session, *, before: str | None = None, limit: int) -> Sequence[ApiKey]:
    """Keys, newest first.

    Raises:
        NotFound: the key ``before`` doesn't exist.
    """
    last = None if before is None else get(session, before)
    return session.scalars(pages.newest_first(ApiKey, before=last, limit=limit)).all()


def live(session: Session) -> Sequence[ApiKey]:
    """The keys that are valid now."""
    return session.scalars(_live()).all()


def _live() -> Select[ApiKey]:
    alive = ApiKey.revoked_at.is_(None) & or_(
        ApiKey.expires_at.is_(None), ApiKey.expires_at > now()
    )
    return select(ApiKey).where(alive)


def fits(row: ApiKey, text: str, *, at: datetime) -> bool:
    """Whether this is the row's key and valid at this time."""
    return hmac.compare_digest(row.digest, credentials.digest_of(text)) and is_live(row, at=at)


def is_live(row: ApiKey, *, at: datetime) -> bool:
    """Whether a key is valid at this time."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > at)
