"""Reads engines' layer reports out of the store."""

from __future__ import annotations

from pydantic import ValidationError

from farm.errors import NotFound, TooLarge
from farm.reports.layers import MAX_LAYER_REPORT_BYTES, LayerReport
from farm.store.base import Store

#: A model of ten thousand layers; larger reports are served as the stored file.
MOST_PARSED_BYTES = 4 * 2**20


def size(store: Store, digest: str) -> int:
    """How many bytes a report has.

    Raises:
        NotFound, TooLarge
    """
    found = store.find(digest)
    if found is None:
        raise NotFound("the store has lost its layer report")
    if found.bytes > MAX_LAYER_REPORT_BYTES:
        raise TooLarge(
            f"the layer report has {found.bytes} bytes",
            hint=f"it is the blob {digest} in the artifact store",
        )
    return found.bytes


def read(store: Store, digest: str, engine_id: str) -> LayerReport:
    """The report of an engine.

    Raises:
        NotFound: no stage of the farm writes what is there.
    """
    with store.local(digest) as file:
        content = file.read_bytes()
    try:
        return LayerReport.model_validate_json(content)
    except ValidationError:
        raise NotFound(
            f"engine {engine_id!r} has an unreadable layer report",
            hint="don't trust this engine: its stage sent a report that no stage of the farm sends",
        ) from None
