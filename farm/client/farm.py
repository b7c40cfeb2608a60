"""A farm, by its address."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from farm.client.benches import Benches
from farm.client.builds import Builds
from farm.client.deletion import Deletions
from farm.client.fleet import Fleet
from farm.client.http import Http
from farm.client.inference import Inferences
from farm.client.keys import Keys
from farm.client.meant import Meant
from farm.client.mirrors import Mirrors
from farm.client.onnx import Onnx
from farm.client.plugins import Plugins
from farm.client.pulls import Pulls
from farm.client.registry import Registry
from farm.client.retention import Retentions
from farm.client.retries import Backoff
from farm.client.search import Search
from farm.client.sets import Sets
from farm.client.storage import Storage
from farm.client.sync import Syncs
from farm.client.tokens import Tokens
from farm.client.triton import Repositories
from farm.client.trust import Confirm, Signing

DEFAULT_URL = "http://127.0.0.1:8000"


class Farm(
    Benches,
    Builds,
    Registry,
    Search,
    Deletions,
    Retentions,
    Pulls,
    Onnx,
    Sets,
    Inferences,
    Repositories,
    Syncs,
    Fleet,
    Plugins,
    Storage,
    Keys,
    Tokens,
    Mirrors,
):
    """The farm at ``url``; by default at ``FARM_URL``, else on this machine.

    Parameters:
        key: for the farm; by default `FARM_KEY`, else the key of the farm that this user runs on this
            machine; `""` to send none.
        token: of an OpenID Connect issuer that the farm trusts, instead of a key; by default `FARM_TOKEN`.
        timeout: seconds without a response after which a request fails.
        backoff: how repeatable requests are retried while the farm is unreachable.
        signing_key: the farm's public signing key, as a file or a fingerprint; by default `FARM_PINNED_KEY`,
            else what this user has seen of the farm before.
        accept_new_key: believe a farm on another machine that this user has never pulled from.
        confirm_key: asks somebody about such a farm: given its address and key, whether to believe it.
        transport: carries the requests; for tests.
        home: the folder with this user's key and the farms known; by default `FARM_HOME`.
        meant: what errors call it, where there are several.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        token: str | None = None,
        backoff: Backoff | None = None,
        signing_key: str | Path | None = None,
        accept_new_key: bool = False,
        confirm_key: Confirm | None = None,
        transport: httpx2.BaseTransport | None = None,
        home: Path | None = None,
        meant: Meant | None = None,
    ) -> None:
        self.url = url or os.environ.get("FARM_URL") or DEFAULT_URL
        http = Http(
            self.url,
            timeout_s=timeout,
            backoff=backoff or Backoff(),
            key=key,
            token=token,
            transport=transport,
            home=home,
            meant=meant or Meant(),
            signing=Signing(
                key=None if signing_key is None else str(signing_key),
                accept_new=accept_new_key,
                confirm=confirm_key,
            ),
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
