"""Logins: what a browser has instead of a key.

A login stands for its key and ends with it. `farm open` gives the browser a link, which works once, instead
of the key itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import ApiKey, Login
from farm.errors import KeyNeeded
from farm.specs.scopes import Scope
from farm.trust import audit, credentials
from farm.trust.callers import Caller

LASTS = timedelta(hours=12)
LINK_LASTS = timedelta(minutes=2)
_NEVER = datetime.max.replace(tzinfo=UTC)


def begin(session: Session, by: Caller, *, is_link: bool = False) -> tuple[Login, str]:
    """Let a browser in for the caller's key, or make a link that does so once.

    Returns:
        Its row, and the login itself, which can't be recovered later.
    """
    at = now()
    session.execute(delete(Login).where(Login.expires_at <= at))
    assert by.key_id is not None
    text, login_id = credentials.new_login()
    row = Login(
        id=login_id,
        key_id=by.key_id,
        digest=credentials.digest_of(text),
        is_link=is_link,
        # A token's holder may have others, which allow more or less.
        scopes=None if by.until is None else sorted(by.scopes),
        until=by.until,
        created_at=at,
        expires_at=min(at + (LINK_LASTS if is_link else LASTS), by.until or _NEVER),
    )
    session.add(row)
    session.flush()
    audit.record(session, by, "login.link" if is_link else "login", login_id)
    return row, text


def follow(session: Session, link: str, *, address: str) -> tuple[Login, str]:
    """The login that a link leads to; the link then leads nowhere.

    Parameters:
        address: the browser's.

    Raises:
        KeyNeeded: it has been followed before, or is too old.
    """
    row = session.get(Login, credentials.login_id_of(link) or "")
    if row is not None and row.is_link and _fits(row, link, at=now()):
        key = session.get(ApiKey, row.key_id)
        taken = session.execute(delete(Login).where(Login.id == row.id).returning(Login.id)).all()
        if taken and key is not None and key.revoked_at is None:
            by = Caller(key_id=key.id, name=key.name, address=address, until=row.until)
            scopes = frozenset(map(Scope, row.scopes)) if row.scopes is not None else by.scopes
            return begin(session, replace(by, scopes=scopes))
    raise KeyNeeded(
        "this link has been used, or is older than two minutes",
        hint="`farm open` makes another one",
    )


def end(session: Session, login: str) -> None:
    """Forget a login."""
    session.execute(delete(Login).where(Login.digest == credentials.digest_of(login)))


def live(session: Session) -> Sequence[Login]:
    """The logins that are valid now."""
    return session.scalars(select(Login).where(Login.expires_at > now(), ~Login.is_link)).all()


def fits(row: Login, text: str, *, at: datetime) -> bool:
    """Whether this is the row's login and valid at this time."""
    return not row.is_link and _fits(row, text, at=at)


def _fits(row: Login, text: str, *, at: datetime) -> bool:
    return hmac.compare_digest(row.digest, credentials.digest_of(text)) and row.expires_at > at
