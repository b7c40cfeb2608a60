"""What the routes work with, made once from the settings and passed in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from farm import sources
from farm.db import Database
from farm.dispatch import Doorbell, create_celery
from farm.fleet import Fleet
from farm.schemas import Problem
from farm.settings import Settings
from farm.sources import Look
from farm.specs import SourceFormat
from farm.storage import LocalStore
from farm.sweep import Sweeper

_FLEET_S = 0.5


@dataclass(kw_only=True)
class Services:
    settings: Settings
    db: Database
    store: LocalStore
    sweeper: Sweeper
    _checked: dict[tuple[str, SourceFormat], Look] = field(default_factory=dict, init=False)
    _known_fleet: tuple[float, Fleet] | None = field(default=None, init=False)

    @classmethod
    def create(cls, settings: Settings) -> Services:
        db = Database(settings.database)
        doorbell = Doorbell(db, create_celery(settings))
        return cls(
            settings=settings,
            db=db,
            store=LocalStore(settings.store_dir),
            sweeper=Sweeper(db, doorbell, settings),
        )

    def check_source(self, digest: str, format: SourceFormat) -> Look:
        """Refuse what can't be a source of this format; a blob never changes, so once is enough.

        Returns what else the look at it has shown.

        Raises:
            SourceRefused, InvalidRequest
        """
        if (digest, format) not in self._checked:
            if not self.store.has(digest):
                return Look()
            path = self.store.path(digest)
            sources.check(path, format)
            self._checked[digest, format] = sources.look(path, format)
        return self._checked[digest, format]

    def fleet(self, session: Session) -> Fleet:
        """The workers as they are, or were less than half a second ago."""
        known = self._known_fleet
        if known is None or time.monotonic() - known[0] > _FLEET_S:
            known = (time.monotonic(), Fleet.load(session, ttl_s=self.settings.worker_ttl_s))
            self._known_fleet = known
        return known[1]


async def _services(request: Request) -> Services:
    # A coroutine, though it awaits nothing: FastAPI would send a function to a thread.
    services: Services = request.app.state.services
    return services


Farm = Annotated[Services, Depends(_services)]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[
    Annotated[str, StringConstraints(max_length=100)] | None,
    Query(description="`cursor` of the page before"),
]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these errors."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": _NAMES[status], "content": content} for status in statuses}


_NAMES = {
    400: "Bad request",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    422: "Invalid request",
    503: "Unavailable",
    507: "Storage full",
}
