"""This process's cache of valid keys: one database lookup serves all requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import or_, update

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import ApiKey, Login
from farm.errors import DatabaseUnavailable, FarmError, Unavailable
from farm.trust import credentials, keys, logins

log = logging.getLogger(__name__)

#: A key revoked elsewhere is rejected after this long.
_FRESH_S = 1.0
#: An unknown key, which may be new, is looked up at most this often, so that guesses cost little.
_LOOK_AGAIN_S = 0.1
#: While the database is unreachable, known keys are accepted for this long.
_STALE_S = 30.0
_FAIL_AGAIN_S = 0.5
_USES_APART = timedelta(minutes=1)
_WRITE_S = 5.0


class Ring:
    """Looks up keys, and the logins that browsers have for them, and records when keys were used."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rows: Mapping[str, ApiKey] = {}
        self._logins: Mapping[str, Login] = {}
        self._subjects: Mapping[str, ApiKey] = {}  #: by their digests
        self._looked_s: float | None = None
        self._failed: tuple[float, str] | None = None
        self._looking = threading.Lock()
        self._noting = threading.Lock()
        self._written: dict[str, datetime] = {}
        self._used: dict[str, datetime] = {}

    def known(self, text: str) -> ApiKey | None:
        """The key, if known without asking the database; otherwise use ``look``."""
        age_s = self._age_s()
        if age_s is None or age_s > _FRESH_S:
            return None
        return self._fitting(text)

    def is_unknown(self, text: str) -> bool:
        """Whether the key is known to be invalid without asking the database."""
        age_s = self._age_s()
        lately = age_s is not None and age_s <= _LOOK_AGAIN_S
        return not _is_one(text) or (lately and self._fitting(text) is None)

    def look(self, text: str) -> ApiKey | None:
        """The key, or None if the farm doesn't have it. Asks the database.

        Raises:
            DatabaseUnavailable, SchemaOutdated
        """
        if not _is_one(text):
            return None
        with self._looking:
            found = self.known(text)
            age_s = self._age_s()
            if found is None and (age_s is None or age_s > _LOOK_AGAIN_S):
                self._refresh()
                found = self._fitting(text)
        return found

    def subject(self, digest: str) -> ApiKey | None:
        """Whom an issuer's tokens are for, if known without asking the database."""
        age_s = self._age_s()
        row = self._subjects.get(digest)
        if row is None or age_s is None or age_s > _FRESH_S:
            return None
        self._note(row, now())
        return row

    def look_subject(self, digest: str) -> ApiKey | None:
        """As ``subject``, or None if the farm doesn't know of it. Asks the database.

        Raises:
            DatabaseUnavailable, SchemaOutdated
        """
        with self._looking:
            found = self.subject(digest)
            if found is None:
                self._refresh()
                found = self.subject(digest)
        return found

    def scopes_of_login(self, login: str) -> list[str] | None:
        """What the token allowed that a browser logged in with; None if that was a key."""
        row = self._logins.get(credentials.login_id_of(login) or "")
        return None if row is None else row.scopes

    def opens(self, key_id: str) -> bool:
        """Whether the key with this id, which was presented before, is still valid.

        Raises:
            DatabaseUnavailable, SchemaOutdated
        """
        with self._looking:
            age_s = self._age_s()
            if age_s is None or age_s > _FRESH_S:
                self._refresh()
            row = self._rows.get(key_id)
        return row is not None and (row.expires_at is None or row.expires_at > now())

    def remembered(self, text: str) -> ApiKey | None:
        """The key as last known, for when the database is unreachable."""
        age_s = self._age_s()
        return self._fitting(text) if age_s is not None and age_s < _STALE_S else None

    def forget(self) -> None:
        """Ask the database at the next request: a key was created or revoked."""
        self._looked_s = None

    def _age_s(self) -> float | None:
        return None if self._looked_s is None else time.monotonic() - self._looked_s

    def _refresh(self) -> None:
        began = time.monotonic()
        if self._failed is not None and began - self._failed[0] < _FAIL_AGAIN_S:
            raise DatabaseUnavailable(self._failed[1])
        try:
            with self._db.read() as session:
                rows = {row.id: row for row in keys.live(session)}
                logged_in = {row.id: row for row in logins.live(session)}
        except DatabaseUnavailable as err:
            # Requests waiting for this lookup get the same answer instead of each trying again.
            self._failed = time.monotonic(), err.detail
            raise
        self._rows, self._logins = rows, logged_in
        self._subjects = {row.digest: row for row in rows.values() if row.issuer is not None}
        self._looked_s, self._failed = began, None

    def _fitting(self, text: str) -> ApiKey | None:
        at = now()
        login = self._logins.get(credentials.login_id_of(text) or "")
        if login is not None:
            row = self._rows.get(login.key_id)
            fits = logins.fits(login, text, at=at) and row is not None and keys.is_live(row, at=at)
        else:
            row = self._rows.get(credentials.id_of(text) or "")
            fits = row is not None and keys.fits(row, text, at=at)
        if row is None or not fits:
            return None
        self._note(row, at)
        return row

    def _note(self, row: ApiKey, at: datetime) -> None:
        last = self._written.get(row.id) or row.last_used_at
        if last is None or at - last >= _USES_APART or at < last:
            with self._noting:
                self._written[row.id] = self._used[row.id] = at

    def write_uses(self) -> None:
        """Store when keys were used since the last call.

        Raises:
            Unavailable: it will be stored at the next call.
        """
        with self._noting:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            with self._db.write() as session:
                for key_id, at in used.items():
                    earlier = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < at)
                    session.execute(
                        update(ApiKey)
                        .where(ApiKey.id == key_id, earlier)
                        .values(last_used_at=at)
                        .execution_options(synchronize_session=False)
                    )
        except FarmError:
            with self._noting:
                self._used = used | self._used
            raise


def _is_one(text: str) -> bool:
    return bool(credentials.id_of(text) or credentials.login_id_of(text))


class UseWriter(threading.Thread):
    """Stores when keys were used in the background, so that no request waits for it."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(name="key-uses", daemon=True)
        self._ring = ring
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def run(self) -> None:
        while True:
            last = self._stopped.wait(_WRITE_S)
            try:
                self._ring.write_uses()
            except Unavailable as err:
                log.warning("%s; the keys' last use will be recorded later", err.detail)
            except Exception:
                # The only writer in this process: a bug may cost a round, but must not end the thread.
                log.exception("recording key use hit a bug; it continues")
            if last:
                return
