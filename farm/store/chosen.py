"""Chooses the store from the settings."""

from __future__ import annotations

from farm.errors import InvalidRequest
from farm.settings import Settings
from farm.specs import buckets, stores
from farm.store.base import Store
from farm.store.bucket import BucketStore
from farm.store.cache import Cache
from farm.store.local import LocalStore


def store_of(settings: Settings) -> Store:
    """The farm's store.

    Raises:
        InvalidRequest, ExtraMissing
    """
    if buckets.is_bucket(settings.store):
        return BucketStore(
            settings.store, cache_of(settings), public_endpoint=settings.store_endpoint
        )
    if stores.is_api(settings.store):
        raise InvalidRequest(
            f"{settings.store} is a store for workers: the API needs a folder or a bucket",
            hint="set FARM_STORE to a folder or to s3://BUCKET/PREFIX",
        )
    return LocalStore(settings.store_dir)


def cache_of(settings: Settings) -> Cache:
    """This machine's copies of a store elsewhere."""
    return Cache(settings.home / "cache", most_bytes=settings.cache_bytes)
