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
    """A store, and the workers by their names. A home is shared only where the folder is."""

    is_bucket: bool
    workers: Mapping[str, Reach]
    redirects: bool = False  #: whether pulls go to the bucket, rather than through the API


#: A worker of another kind, one that has joined by a token for instance, is one more name here.
PLACES = {
    "folder": Place(is_bucket=False, workers={"one": Reach.FOLDER, "two": Reach.FOLDER}),
    "s3": Place(is_bucket=True, workers={"one": Reach.S3, "two": Reach.S3}, redirects=True),
    "http": Place(is_bucket=False, workers={"one": Reach.HTTP, "two": Reach.HTTP}),
    "mixed": Place(is_bucket=True, workers={"one": Reach.S3, "two": Reach.HTTP}),
}
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
