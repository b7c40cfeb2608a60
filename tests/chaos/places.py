"""Where the farm's artifacts are in a storm, and how each worker reaches them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from unittest.mock import patch

from tests import s3


class Reach(StrEnum):
    """How a worker reaches the store."""

    FOLDER = "folder"  #: the API's own, and its home
    S3 = "s3"
    HTTP = "http"  #: the API


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store, and the workers by their names. A home is shared only where the folder is.

    One more worker, ``JOINER``, joins by a token from an empty home.
    """

    is_bucket: bool
    workers: Mapping[str, Reach]
    tells_store: bool = False  #: whether machines that join are told of it, rather than of the API
    redirects: bool = False  #: whether pulls go to the bucket, rather than through the API


PLACES = {
    "folder": Place(
        is_bucket=False, workers={"one": Reach.FOLDER, "two": Reach.FOLDER}, tells_store=True
    ),
    "s3": Place(
        is_bucket=True,
        workers={"one": Reach.S3, "two": Reach.S3},
        tells_store=True,
        redirects=True,
    ),
    "http": Place(is_bucket=False, workers={"one": Reach.HTTP, "two": Reach.HTTP}),
    "mixed": Place(is_bucket=True, workers={"one": Reach.S3, "two": Reach.HTTP}),
}
JOINER = "three"
STORE = f"s3://{s3.BUCKET}/farm"


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """What another machine has: nothing of this one's settings or credentials."""
    return {k: v for k, v in environment.items() if not k.startswith(("AWS_", "FARM_"))}


@contextmanager
def reached(server: s3.S3 | None) -> Iterator[None]:
    """Let this process, which audits, reach the bucket too."""
    with patch.dict(os.environ, {} if server is None else server.environment):
        yield


def server_in(folder: Path) -> s3.Program:
    folder.mkdir()
    return s3.program(folder)
