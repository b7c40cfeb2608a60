"""Commands that work where the API runs, directly in the farm's database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from farm import installed
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.database.session import Database
    from farm.settings import Settings

T = TypeVar("T")


@installed.needs("server")
def in_farm(work: Callable[[Database, Settings], T]) -> T:
    """Work with the farm in FARM_DATABASE_URL or FARM_HOME.

    Raises:
        InvalidRequest: there is none.
        SchemaOutdated, DatabaseUnavailable
    """
    from farm.database.migrate import require_schema
    from farm.database.session import Database
    from farm.settings import Settings

    settings = Settings()
    if not settings.database_url and not (settings.home / "farm.db").exists():
        raise InvalidRequest(
            f"no farm in {settings.home}",
            hint="run it where the API runs, with its FARM_HOME or FARM_DATABASE_URL",
        )
    db = Database(settings.database)
    try:
        require_schema(db)
        return work(db, settings)
    finally:
        db.dispose()
