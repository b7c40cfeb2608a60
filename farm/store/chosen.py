"""Chooses the store from the settings."""

from __future__ import annotations

from pathlib import Path

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
    return store_at(settings.store or str(settings.store_dir), settings)


def store_at(place: str, settings: Settings) -> Store:
    """The store in a folder or a bucket, which needn't be the farm's.

    Raises:
        InvalidRequest, ExtraMissing
    """
    if buckets.is_bucket(place):
        return BucketStore(place, cache_of(settings), public_endpoint=settings.store_endpoint)
    if stores.is_api(place):
        raise InvalidRequest(
            f"{place} is a store for workers: the API, and farm store copy, need a folder or a bucket",
            hint="name a folder, or s3://BUCKET/PREFIX",
        )
    return LocalStore(Path(place))


def cache_of(settings: Settings) -> Cache:
    """This machine's copies of a store elsewhere."""
    return Cache(settings.home / "cache", most_bytes=settings.cache_bytes)
