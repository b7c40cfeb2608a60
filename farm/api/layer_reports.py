"""Reads engines' layer reports out of the store."""

from __future__ import annotations

import pathlib

from pydantic import ValidationError

from farm.errors import NotFound, TooLarge
from farm.reports.layers import MAX_LAYER_REPORT_BYTES, LayerReport
from farm.store.base import Store

#: A model of ten thousand layers; larger reports are served as the stored file.
MOST_PARSED_BYTES = 4 * 2**20


def path(store: Store, digest: str) -> pathlib.Path:
    """The report's file.

    Raises:
        NotFound, TooLarge
    """
    found = store.path(digest)
    size = found.stat().st_size
    if size > MAX_LAYER_REPORT_BYTES:
        raise TooLarge(
            f"the layer report has {size} bytes",
            hint=f"it is the blob {digest} in the artifact store",
        )
    return found


def read(file: pathlib.Path, engine_id: str) -> LayerReport:
    """The report of an engine.

    Raises:
        NotFound: no stage of the farm writes what is there.
    """
    try:
        return LayerReport.model_validate_json(file.read_bytes())
    except ValidationError:
        raise NotFound(
            f"engine {engine_id!r} has an unreadable layer report",
            hint="don't trust this engine: its stage sent a report that no stage of the farm sends",
        ) from None
