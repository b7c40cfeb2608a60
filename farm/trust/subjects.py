"""Whom tokens are for: a row beside the keys, so that what holds of keys holds of them.

It is made when the first of their tokens comes. Revoking it refuses all of their tokens.
"""

from __future__ import annotations

import hashlib
import threading

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import ApiKey
from farm.errors import TokenRefused
from farm.specs.oidc import Oidc
from farm.trust import audit, credentials, tokens
from farm.trust.callers import Caller
from farm.trust.issuer import Issuer, Key
from farm.trust.ring import Ring
from farm.trust.tokens import Identity, Sealed

#: Requests that wait for the issuer or the database at once; others aren't kept from looking up keys.
_LOOKS = 2
_looking: RunVar[CapacityLimiter] = RunVar("looks at tokens")


class Subjects:
    """Authenticates by tokens.

    Raises:
        TokenRefused
        IssuerUnavailable: its keys are needed, and it doesn't answer.
        DatabaseUnavailable
    """

    def __init__(self, oidc: Oidc, db: Database, ring: Ring) -> None:
        self._oidc = oidc
        self._db = db
        self._ring = ring
        self._issuer = Issuer(oidc)
        self._making = threading.Lock()

    async def of(self, token: str) -> tuple[ApiKey, Identity]:
        """Whom a token is for, and what it allows."""
        sealed = tokens.opened(token, self._oidc)
        key = self._issuer.known(sealed.key_id)
        row = None
        if key is not None:
            identity = tokens.verified(sealed, key, self._oidc)
            row = self._ring.subject(_digest(identity))
        elif self._issuer.is_unknown(sealed.key_id):
            raise tokens.unknown_key(sealed, self._oidc)
        if row is None:
            return await to_thread.run_sync(
                self.look, token, abandon_on_cancel=True, limiter=_places()
            )
        return row, identity

    def look(self, token: str) -> tuple[ApiKey, Identity]:
        """As ``of``, for a thread: asks the issuer and the database as needed."""
        sealed = tokens.opened(token, self._oidc)
        identity = tokens.verified(sealed, self._key(sealed), self._oidc)
        row = self._ring.look_subject(_digest(identity))
        return row or self._made(identity), identity

    def _key(self, sealed: Sealed) -> Key:
        found = self._issuer.known(sealed.key_id) or self._issuer.look(sealed.key_id)
        if found is None:
            raise tokens.unknown_key(sealed, self._oidc)
        return found

    def _made(self, identity: Identity) -> ApiKey:
        with self._db.read() as session:
            row = _found(session, identity)
        if row is None:
            row = self._added(identity)
            self._ring.forget()
        if row is None or row.revoked_at is not None:
            raise TokenRefused(
                f"tokens for {identity.name} aren't accepted any more: an administrator revoked them"
            )
        return row

    def _added(self, identity: Identity) -> ApiKey | None:
        with self._making:
            try:
                with self._db.write() as session:
                    return _found(session, identity) or _add(session, identity)
            except IntegrityError:  # another process was quicker
                with self._db.read() as session:
                    return _found(session, identity)


def _places() -> CapacityLimiter:
    try:
        return _looking.get()
    except LookupError:
        made = CapacityLimiter(_LOOKS)
        _looking.set(made)
        return made


def _digest(identity: Identity) -> str:
    """Of no key: those have no such form."""
    return hashlib.sha256(f"oidc\0{identity.issuer}\0{identity.subject}".encode()).hexdigest()


def _found(session: Session, identity: Identity) -> ApiKey | None:
    return session.scalar(select(ApiKey).where(ApiKey.digest == _digest(identity)))


def _add(session: Session, identity: Identity) -> ApiKey:
    _, key_id = credentials.new()
    row = ApiKey(
        id=key_id,
        name=identity.name,
        digest=_digest(identity),
        issuer=identity.issuer,
        subject=identity.subject,
        scopes=[],
        created_at=now(),
        created_by=identity.issuer,
    )
    session.add(row)
    session.flush()
    by = Caller(key_id=key_id, name=identity.name)
    audit.record(session, by, "subject.create", key_id, subject=identity.subject)
    return row
