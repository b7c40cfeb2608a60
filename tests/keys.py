"""Keys for tests that aren't about keys, and for those that are."""

from __future__ import annotations

from farm.database.session import Database
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM


def a_key(
    db: Database, *scopes: Scope, name: str = "tests", expires_in_s: float | None = None
) -> str:
    """A new key, by default with all scopes."""
    with db.write() as session:
        _, text = keys.create(
            session,
            name=name,
            scopes=scopes or [Scope.ADMIN],
            expires_in_s=expires_in_s,
            by=THE_FARM,
        )
    return text


def key_of(settings: Settings) -> str:
    """The key in a farm's home, which is made if there is none."""
    file = credentials.home_file(settings.home)
    found = credentials.read(file)
    if found is None:
        db = Database(settings.database)
        found = a_key(db)
        db.dispose()
        credentials.write(file, found)
    return found


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}
