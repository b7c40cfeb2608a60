"""A farm, by its address."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import httpx2

from farm.client.benches import Benches
from farm.client.builds import Builds
from farm.client.fleet import Fleet
from farm.client.http import Http
from farm.client.keys import Keys
from farm.client.mirrors import Mirrors
from farm.client.plugins import Plugins
from farm.client.pulls import Pulls
from farm.client.registry import Registry
from farm.client.retries import Backoff
from farm.client.sets import Sets
from farm.client.storage import Storage

DEFAULT_URL = "http://127.0.0.1:8000"


class Farm(Benches, Builds, Registry, Pulls, Sets, Fleet, Plugins, Storage, Keys, Mirrors):
    """The farm at ``url``; by default at ``FARM_URL``, else on this machine.

    Parameters:
        key: for the farm; by default `FARM_KEY`, else the key of the farm that this user runs on this
            machine.
        timeout: seconds without a response after which a request fails.
        backoff: how repeatable requests are retried while the farm is unreachable.
        transport: carries the requests; for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        backoff: Backoff | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url or os.environ.get("FARM_URL") or DEFAULT_URL
        http = Http(
            self.url,
            timeout_s=timeout,
            backoff=backoff or Backoff(),
            key=key,
            transport=transport,
        )
        super().__init__(http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the farm."""
        self.http.close()
