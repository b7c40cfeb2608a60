"""Clients of buckets."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from farm import installed
from farm.errors import InvalidRequest
from farm.specs import buckets, texts

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

_DETAIL_CHARS = 400
#: Without credentials a cloud's metadata service is asked, which may be nowhere.
_RETRIES, _RETRY_FOR = 5, timedelta(minutes=1)


def opened(url: str, *, retries: int = _RETRIES, **more: Any) -> ObjectStore:
    """A client of a bucket; where it is and the credentials come from the environment.

    Parameters:
        retries: of each request.
        more: options of the store's kind.

    Raises:
        InvalidRequest: what the environment says can't be used.
        ExtraMissing
    """
    with installed.needs("buckets"):
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    config: RetryConfig = {"max_retries": retries, "retry_timeout": _RETRY_FOR}
    try:
        # Without options for its client: any would replace all that the environment says.
        return from_url(url.rstrip("/"), retry_config=config, **more)
    except (BaseError, ValueError) as err:
        raise InvalidRequest(
            f"{url} can't be used: {first_line(err)}", hint=buckets.hint(url)
        ) from err


def first_line(err: Exception) -> str:
    """What the store said, without the library's own dump of it."""
    said = str(err).partition("\n\nDebug source")[0]
    return str(texts.escaped(" ".join(said.split())))[:_DETAIL_CHARS]
