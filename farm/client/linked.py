"""Bytes that a farm keeps in a bucket, by the link that it gives: nothing of this client's goes there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

import httpx2

from farm.client.plain import plain
from farm.errors import FarmError, Unavailable

_HINT = (
    "can this machine reach it? The farm redirects pulls if FARM_REDIRECT_PULLS is set on its API"
)


@contextmanager
def stream(
    farm: str, url: httpx2.URL, headers: Mapping[str, str], timeout: httpx2.Timeout
) -> Iterator[httpx2.Response]:
    """One attempt at a streamed GET of a link; later failures are httpx2's errors.

    Parameters:
        farm: the address of the farm that gave it.
        headers: of which only the range is sent, and never a key.

    Raises:
        FarmError: a farm by https sends its clients to http, or to what isn't an address.
        Unavailable: the answer is an error other than 416; another attempt gets another link.
    """
    if url.scheme not in ("http", "https") or (farm.startswith("https:") and url.scheme == "http"):
        raise FarmError(
            f"the farm at {farm} sends this client to {plain(url.scheme)}://{plain(url.host)}",
            hint="have its operator set AWS_ENDPOINT_URL or FARM_STORE_ENDPOINT to an https:// address",
        )
    sent = {name: value for name, value in headers.items() if name == "Range"}
    sent["Accept-Encoding"] = "identity"
    with (
        httpx2.Client(timeout=timeout) as client,
        client.stream("GET", url, headers=sent) as response,
    ):
        status = response.status_code
        if status not in (
            HTTPStatus.OK,
            HTTPStatus.PARTIAL_CONTENT,
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        ):
            # The rest of the address would let anybody read the file.
            raise Unavailable(
                f"the farm's bucket at {plain(url.host)} answered {status}", hint=_HINT
            )
        yield response
