"""Chooses the store from the settings."""

from __future__ import annotations

from farm.settings import Settings
from farm.store.base import Store
from farm.store.local import LocalStore


def store_of(settings: Settings) -> Store:
    """The farm's store."""
    return LocalStore(settings.store_dir)
