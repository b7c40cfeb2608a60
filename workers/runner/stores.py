"""Chooses a worker's store from the settings."""

from __future__ import annotations

from farm.client.api_store import ApiStore
from farm.client.http import Http
from farm.client.retries import Backoff
from farm.settings import Settings
from farm.specs import stores
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
