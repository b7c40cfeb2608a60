"""Blobs that are old enough for garbage collection."""

from __future__ import annotations

import os
import time
from typing import Any

from farm.database.tables import Artifact


def age(services: Any, digest: str) -> None:
    """Have a blob's file and row be days old."""
    old = time.time() - 10 * 86400
    os.utime(services.store.place(digest), (old, old))
    with services.db.write() as session:
        created = session.get(Artifact, digest)
        created.created_at = created.created_at.replace(year=2020)
