"""What ``/`` answers to clients that ask for JSON."""

from __future__ import annotations

from farm.schemas.base import Answer


class Links(Answer):
    builds: str = "/v1/builds"
    models: str = "/v1/models"
    workers: str = "/v1/workers"
    openapi: str = "/openapi.json"
    docs: str = "/docs"
    health: str = "/healthz"
