"""What the routes work with, made once from the settings and passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from farm.db import Database
from farm.dispatch import Doorbell, create_celery
from farm.fleet import Fleet
from farm.schemas import Problem
from farm.settings import Settings
from farm.storage import LocalStore
from farm.sweep import Sweeper


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    db: Database
    store: LocalStore
    sweeper: Sweeper

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

    def fleet(self, session: Session) -> Fleet:
        return Fleet.load(session, ttl_s=self.settings.worker_ttl_s)


def _services(request: Request) -> Services:
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
