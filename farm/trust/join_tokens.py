"""Join tokens: by one, a machine that has nothing else of the farm's gets a worker's settings and a key."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import ApiKey, JoinToken
from farm.errors import JoinRefused, NotFound
from farm.specs.scopes import Scope
from farm.trust import audit, credentials, keys, pages
from farm.trust.callers import Caller

_MAKER = "join token "


def create(
    session: Session, *, expires_in_s: float, uses: int, by: Caller
) -> tuple[JoinToken, str]:
    """Create a join token.

    Parameters:
        uses: how many machines may join by it.

    Returns:
        Its row, and the token itself, which can't be recovered later.
    """
    text, token_id = credentials.new_join_token()
    at = now()
    row = JoinToken(
        id=token_id,
        digest=credentials.digest_of(text),
        uses=uses,
        used=0,
        created_at=at,
        created_by=by.name,
        expires_at=at + timedelta(seconds=expires_in_s),
    )
    session.add(row)
    session.flush()
    audit.record(session, by, "token.create", token_id, uses=uses, expires_in_s=expires_in_s)
    return row, text


def get(session: Session, token_id: str) -> JoinToken:
    """The token with this id.

    Raises:
        NotFound
    """
    row = session.get(JoinToken, token_id)
    if row is None:
        raise NotFound(f"there is no join token {token_id!r}", hint="`farm tokens list` lists them")
    return row


def page(session: Session, *, before: str | None = None, limit: int) -> Sequence[JoinToken]:
    """Tokens, newest first.

    Raises:
        NotFound: the token ``before`` doesn't exist.
    """
    last = None if before is None else get(session, before)
    return session.scalars(pages.newest_first(JoinToken, before=last, limit=limit)).all()


def revoke(session: Session, token_id: str, *, by: Caller) -> JoinToken:
    """Revoke a token; what has joined by it stays. Does nothing if it is already revoked.

    Raises:
        NotFound
    """
    row = session.get(JoinToken, token_id, with_for_update=True) or get(session, token_id)
    if row.revoked_at is None:
        row.revoked_at = now()
        session.flush()
        audit.record(session, by, "token.revoke", token_id)
    return row


def use(session: Session, text: str, *, name: str, by: Caller) -> tuple[ApiKey, str]:
    """Let a machine join: make it a key with the scope `work`. Keys that this name joined with before end.

    Parameters:
        name: the machine's.

    Raises:
        JoinRefused
    """
    row = session.get(JoinToken, credentials.join_id_of(text) or "")
    if row is None or not hmac.compare_digest(row.digest, credentials.digest_of(text)):
        raise JoinRefused("unknown join token: it is another farm's, or mistyped")
    taken = session.execute(
        update(JoinToken)
        .where(
            JoinToken.id == row.id,
            JoinToken.used < JoinToken.uses,
            JoinToken.revoked_at.is_(None),
            JoinToken.expires_at > now(),
        )
        .values(used=JoinToken.used + 1)
        .returning(JoinToken.id)
        .execution_options(synchronize_session=False)
    ).all()
    if not taken:
        raise JoinRefused(_fault(row))
    called = f"worker@{name}"
    joined = Caller(name=f"{_MAKER}{row.id}", address=by.address, label=by.label)
    _end_earlier(session, called, by=joined)
    key, secret = keys.create(session, name=called, scopes=[Scope.WORK], by=joined)
    audit.record(session, joined, "join", row.id, name=name, key=key.id)
    return key, secret


def _fault(row: JoinToken) -> str:
    if row.revoked_at is not None:
        return f"the join token {row.id} was revoked at {row.revoked_at:%Y-%m-%d %H:%M} UTC"
    if row.expires_at <= now():
        return f"the join token {row.id} expired at {row.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"the join token {row.id} has been used {row.uses} of {row.uses} times"


def _end_earlier(session: Session, called: str, *, by: Caller) -> None:
    for row in keys.live(session):
        if row.name == called and row.created_by.startswith(_MAKER):
            keys.end(session, row, by=by)
