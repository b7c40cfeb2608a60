"""What the routes depend on, created once from the settings and passed in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, Path, Query, Request, Response
from prometheus_client.registry import CollectorRegistry
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.orm import Session

from farm import logs
from farm.api.documents import problem_response
from farm.api.looks import Looks
from farm.api.places import Places
from farm.api.streams import Streams
from farm.builds.history import History, Sought
from farm.daemon.keeper import Keeper
from farm.daemon.scrub import Scrubber
from farm.daemon.signing import Notary
from farm.daemon.stock import Stocktaker
from farm.daemon.sweep import Sweeper
from farm.database.ids import is_id
from farm.database.session import Database
from farm.errors import Busy
from farm.fleet.workers import Fleet
from farm.keeping.pulled import Pulled
from farm.monitoring.figures import Figures
from farm.monitoring.requests import Requests
from farm.queue.celery_app import create_celery
from farm.queue.doorbell import Doorbell
from farm.quotas import stored
from farm.quotas.rates import Rates
from farm.quotas.reserved import Like
from farm.registry import ids
from farm.schemas.labels import LabelFilter
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.store.base import Store
from farm.store.chosen import store_of
from farm.store.held import Hold
from farm.store.sessions import Sessions
from farm.trust.callers import Caller
from farm.trust.ring import Ring, UseWriter
from farm.trust.signatory import Signatory
from farm.trust.subjects import Subjects

CALLER = "farm.caller"  #: key in a request's ASGI scope
_FLEET_S = 0.5
#: How long a request waits for the database, so that in total it is answered within two seconds.
_PATIENCE_S = 1.2
#: Submissions planned at once: planning is Python code, and only one thread runs it at a time.
_PLANNING = 2
_WAIT_S = 1.0


@dataclass(kw_only=True)
class Services:
    settings: Settings
    db: Database
    store: Store
    sessions: Sessions
    sweeper: Sweeper
    scrubber: Scrubber
    signatory: Signatory
    notary: Notary
    stocktaker: Stocktaker
    figures: Figures
    registry: CollectorRegistry
    requests: Requests
    looks: Looks
    history: History
    streams: Streams
    pulled: Pulled
    keeper: Keeper
    ring: Ring
    uses: UseWriter
    rates: Rates
    subjects: Subjects | None  #: None where no issuer's tokens are accepted
    planning: Places = field(default_factory=lambda: Places(_PLANNING), init=False)
    collecting: threading.Lock = field(default_factory=threading.Lock, init=False)
    verifying: threading.Lock = field(default_factory=threading.Lock, init=False)
    _known_fleet: tuple[float, Fleet] | None = field(default=None, init=False)

    @classmethod
    def create(cls, settings: Settings) -> Services:
        db = Database(settings.database, patience_s=_PATIENCE_S)
        doorbell = Doorbell(db, create_celery(settings))
        store = store_of(settings)
        ring = Ring(db)
        pulled = Pulled(db)
        signatory = Signatory(db, settings)
        uploads = settings.store_dir / "uploads"
        sessions = Sessions(uploads, store, max_bytes=settings.max_upload_bytes)
        stocktaker = Stocktaker(db)
        figures = Figures(db, store, stocktaker.latest, worker_ttl_s=settings.worker_ttl_s)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(figures)
        return cls(
            settings=settings,
            db=db,
            store=store,
            sessions=sessions,
            sweeper=Sweeper(db, doorbell, settings),
            scrubber=Scrubber(db, store, bytes_per_s=settings.scrub_bytes_per_s),
            signatory=signatory,
            notary=Notary(db, signatory),
            stocktaker=stocktaker,
            figures=figures,
            registry=registry,
            requests=Requests(registry),
            looks=Looks(store),
            history=History(),
            streams=Streams(db),
            pulled=pulled,
            keeper=Keeper(db, store, pulled, settings, sessions),
            ring=ring,
            uses=UseWriter(ring),
            rates=Rates(settings.broker),
            subjects=None if settings.oidc is None else Subjects(settings.oidc, db, ring),
        )

    def expected_s(self, session: Session, like: Like) -> float | None:
        """How many seconds a job like this takes; None if none has run."""
        found = self.history.forecast(session, Sought(*like))
        return None if found is None else found.took_s.expected

    @contextmanager
    def one_of(self, places: Places | threading.Lock, what: str) -> Iterator[None]:
        """Hold one of a limited number of places.

        Raises:
            Busy: none is free.
        """
        if not places.acquire(timeout=_WAIT_S):
            raise Busy(what)
        try:
            yield
        finally:
            places.release()

    def hold(self, by: Caller, *, upload: str | None = None, announced: str | None = None) -> Hold:
        """The room that an upload takes of what its client may hold.

        Parameters:
            upload: its id, if it comes in several requests.
            announced: the request's Content-Length.
        """
        # What a worker stores, its job uses.
        is_free = bool({Scope.ADMIN, Scope.WORK} & by.scopes) or not self.settings.max_unused_bytes
        return Hold(
            self.db,
            by.key_id or by.address,
            None if is_free else self.settings.max_unused_bytes,
            stored=None if by.key_id is None else stored.stock(by.key_id, by.name, by.limits),
            upload=upload,
            announced=None if announced is None else int(announced),
        )

    def scope_to_move(self, alias: str) -> Scope:
        """The scope that moving this alias takes."""
        return Scope.ADMIN if alias in self.settings.protected_aliases else Scope.PROMOTE

    def fleet(self, session: Session) -> Fleet:
        """The workers, at most half a second old."""
        known = self._known_fleet
        if known is None or time.monotonic() - known[0] > _FLEET_S:
            known = (time.monotonic(), Fleet.load(session, ttl_s=self.settings.worker_ttl_s))
            self._known_fleet = known
        return known[1]


async def _services(request: Request) -> Services:
    # A coroutine, though it awaits nothing: FastAPI would run a plain function in a thread.
    services: Services = request.app.state.services
    return services


async def _body(request: Request) -> bytes:
    # The door has read it: this neither waits nor parses.
    return await request.body()


async def _caller(request: Request) -> Caller:
    # The door has authenticated it.
    caller: Caller = request.scope[CALLER]
    return caller


Farm = Annotated[Services, Depends(_services)]
By = Annotated[Caller, Depends(_caller)]
Body = Annotated[bytes, Depends(_body)]


async def _build_id(
    build_id: Annotated[
        str,
        Path(
            max_length=100,
            description="the first characters suffice if no other id begins with them; `last` is the newest: "
            "of this key, where keys are required",
        ),
    ],
    farm: Farm,
    by: By,
) -> str:
    if not is_id(build_id):
        client = by.client if by.key_id else None
        find = partial(ids.build_id, given=build_id, client=client)
        build_id = await to_thread.run_sync(_read, farm, find)
    logs.note(build=build_id)
    return build_id


async def _engine_id(
    engine_id: Annotated[
        str,
        Path(
            max_length=100,
            description="the first characters suffice if no other id begins with them",
        ),
    ],
    farm: Farm,
) -> str:
    if is_id(engine_id):
        return engine_id
    return await to_thread.run_sync(_read, farm, partial(ids.engine_id, given=engine_id))


def _read(farm: Services, find: Callable[[Session], str]) -> str:
    with farm.db.read() as session:
        return find(session)


BuildId = Annotated[str, Depends(_build_id)]
EngineId = Annotated[str, Depends(_engine_id)]
#: Of what is deleted: nothing goes by a guess.
WholeEngineId = Annotated[str, Path(max_length=100)]
ModelName = Annotated[str, Path(max_length=100, description="in any case")]
GpuTag = Annotated[str, StringConstraints(max_length=100)]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[
    Annotated[str, StringConstraints(max_length=100)] | None,
    Query(description="`cursor` from the previous page"),
]


LabelFilters = Annotated[
    Annotated[tuple[LabelFilter, ...], Field(max_length=8)],
    Query(description="only with this label: `team=vision`, or `team` for any value; repeatable"),
]


def answer(
    view: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A view as JSON, serialised in the call's own thread: FastAPI would do it on the event loop, after
    validating every field."""
    return Response(view.model_dump_json(), status, headers, media_type="application/json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for a call's own errors, in addition to those of every call (`documents`)."""
    return {status: problem_response(status) for status in statuses}
