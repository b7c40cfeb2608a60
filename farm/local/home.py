"""An embedded farm's home: readable only by its user, with a key for whoever runs the farm."""

from __future__ import annotations

import os
import socket
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import ApiKey
from farm.errors import InvalidRequest
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.trust import credentials, keys, signatory
from farm.trust.callers import this_user

#: Files that only a farm's home has, and others that it may have.
_SIGNS = frozenset({"farm.db", "up.lock", "broker.url"})
_OURS = _SIGNS | {"store", "cache", "key", "work", "logs", "broker", "signing", "known-farms.json"}
_OURS |= {"joined.json", "worker-id"}


def make_private(home: Path) -> None:
    """Create a farm's home, or close an existing one to all other users of this machine.

    A folder that isn't a farm's home, or is another user's, stays as it is: the setting may say ``/tmp``.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.stat()
    is_open = found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077
    if is_open and not found.st_mode & stat.S_ISVTX:
        there = {one.name for one in home.iterdir()}
        if there & _SIGNS or there <= _OURS:
            home.chmod(0o700)


def has_farm(home: Path) -> bool:
    """Whether a farm was started in this home. A command that looked for one may have left a database."""
    return (home / "up.lock").exists() or (home / "store" / "id").exists()


def holder(home: Path) -> str:
    """This home's id, which the names of its workers belong to."""
    file = home / "worker-id"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = file.with_name(f".{file.name}-{uuid.uuid4()}")
    try:
        if not file.exists():
            made.write_text(str(uuid.uuid4()))
            with suppress(FileExistsError):  # another process was faster
                os.link(made, file)
        return str(uuid.UUID(file.read_text().strip()))
    except ValueError:
        raise InvalidRequest(
            f"{file} isn't a worker's id", hint="delete it; the next start makes another"
        ) from None
    finally:
        made.unlink(missing_ok=True)


def key(settings: Settings, db: Database) -> str:
    """The key of whoever runs the farm in this home: the one in its file, otherwise a new one.

    If the file is lost, or others could read it, the old key is revoked.
    """
    file = credentials.home_file(settings.home)
    text = credentials.read(file)
    with db.write() as session:
        maker = f"farm up in {settings.home} on {socket.gethostname()}"
        before = session.scalars(
            select(ApiKey).where(ApiKey.created_by == maker, ApiKey.revoked_at.is_(None))
        ).all()
        if text is not None and credentials.is_private(file):
            kept = session.get(ApiKey, credentials.id_of(text))
            if kept and Scope.ADMIN in kept.scopes and keys.fits(kept, text, at=now()):
                return text
        by = this_user()
        for row in before:
            keys.end(session, row, by=by)
        row, text = keys.create(session, name="home", scopes=[Scope.ADMIN], by=by)
        row.created_by = maker
    credentials.write(file, text)
    return text


def make_signing_key(settings: Settings) -> None:
    """Make the key that signs the farm's engines, unless there is one or the settings name another.

    Raises:
        SigningFailed
    """
    if settings.signing_key is None and signatory.signer_of(settings) is None:
        signatory.make(settings)
