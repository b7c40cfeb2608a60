"""Chooses a worker's store from the settings, and checks it."""

from __future__ import annotations

import json
import sys

from farm.client.api_store import ApiStore
from farm.client.http import Http
from farm.client.retries import Backoff
from farm.database.session import Database
from farm.errors import FarmError
from farm.settings import Settings
from farm.specs import stores
from farm.store import proof
from farm.store.base import Blobs
from farm.store.chosen import cache_of, store_of

_TIMEOUT_S = 30.0


def blobs_of(settings: Settings) -> Blobs:
    """The store of a worker: the farm's own, or its API's.

    Raises:
        InvalidRequest, ExtraMissing
    """
    if stores.is_api(settings.store):
        http = Http(settings.store, timeout_s=_TIMEOUT_S, backoff=Backoff(), home=settings.home)
        return ApiStore(http, cache_of(settings))
    return store_of(settings)


def proven(settings: Settings) -> Blobs:
    """The store, once it has been shown to be the farm's, and to be readable and writable from here.

    Raises:
        FarmError
    """
    store = blobs_of(settings)
    db = Database(settings.database)
    try:
        proof.prove(db, store)
        store.try_to_write()
    finally:
        db.dispose()
    return store


def show(settings: Settings, *, as_document: bool) -> int:
    """Print whether this machine reaches the farm's store; return 0 if it can read and write there."""
    address, problem = settings.store or str(settings.store_dir), None
    try:
        address = proven(settings).address
    except FarmError as err:
        problem = err
    if as_document:
        told = None if problem is None else {"detail": problem.detail, "hint": problem.hint}
        print(json.dumps({"store": address, "problem": told}, indent=2))
    elif problem is None:
        print(f"the farm's store can be read and written: {address}")
    else:
        print(f"error: {problem.detail}\nhint: {problem.hint}", file=sys.stderr)
    return 0 if problem is None else 1
