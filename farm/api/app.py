"""The ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from farm import __version__
from farm.api import (
    aliases,
    audit,
    bench,
    blob_uploads,
    blobs,
    builds,
    compare,
    deletion,
    documents,
    fleet,
    gc,
    health,
    inference,
    jobs,
    keys,
    labels,
    logins,
    me,
    mirrors,
    oci,
    oci_push,
    onnx,
    plugins,
    problems,
    quantization,
    registry,
    retention,
    scrub,
    search,
    signing,
    store,
    tokens,
    triton,
    usage,
    yanks,
)
from farm.api.access import Access
from farm.api.door import Door
from farm.api.services import Services
from farm.api.web import admin, build, engines, job, login, models, now, static_files
from farm.api.web import fleet as fleet_page
from farm.api.web import search as search_page
from farm.database.migrate import require_schema
from farm.errors import DatabaseUnavailable, Unavailable
from farm.settings import Settings
from farm.tracing import spans

log = logging.getLogger(__name__)

_NOUNS = (
    *(
        blob_uploads,
        blobs,
        store,
        builds,
        jobs,
        registry,
        quantization,
        signing,
        onnx,
        triton,
        aliases,
        compare,
        bench,
        inference,
        fleet,
    ),
    *(
        search,
        yanks,
        labels,
        deletion,
        retention,
        usage,
        plugins,
        gc,
        scrub,
        keys,
        tokens,
        me,
        logins,
        audit,
        health,
    ),
    *(mirrors, oci, oci_push, documents),
    *(static_files, login, now, build, job, models, engines, fleet_page, search_page, admin),
)

DESCRIPTION = """
Submit a model once; pull the right TensorRT engine for every GPU.

1. `POST /v1/blobs` the model and its data, 2. `POST /v1/builds`, 3. follow
`GET /v1/builds/{id}/events`, 4. `GET /v1/models/{model}/engines/{gpu}`.
Errors are RFC 9457 problem documents whose `hint` says what to do next.
"""


def create_app(settings: Settings) -> FastAPI:
    """The API for these settings. Its process also runs the sweep, the scrub and the keeper."""
    services = Services.create(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            require_schema(services.db)
        except DatabaseUnavailable as err:
            # It answers 503 until the database is up, instead of needing a restart.
            log.warning("%s", err.detail)
        try:
            services.store.put_all_back()  # files that a killed garbage collection had set aside
            services.store.keep_reserve()
        except Unavailable as err:
            log.warning("%s", err.detail)
        documents.prepare(app)
        threads = (
            *(services.sweeper, services.scrubber, services.notary),
            *(services.uses, services.keeper, services.stocktaker),
        )
        for thread in threads:
            thread.start()
        yield
        for thread in reversed(threads):
            thread.stop()
        services.db.dispose()
        spans.shut_down()

    app = _Api(
        title="Engine farm",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_url=None,  # `documents` has it
        docs_url=None,
        redoc_url=None,
        routes=list(_routes()),
    )
    app.state.services = services
    problems.install(app)
    documents.install(app)
    # At startup rather than on the first request: an operation without a scope must not be served.
    Access(app.routes, services.ring, settings)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """The routes of all operations, which depend on no settings: FastAPI derives them once a process."""
    made = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for noun in _NOUNS:
        made.include_router(noun.router)
    return tuple(made.routes)


class _Api(FastAPI):
    """The application behind its door, which also handles Starlette's own responses."""

    def build_middleware_stack(self) -> ASGIApp:
        services: Services = self.state.services
        access = Access(self.routes, services.ring, services.settings, services.subjects)
        return Door(
            super().build_middleware_stack(),
            services.settings,
            access,
            services.requests,
            services.rates,
        )
