"""Triton repositories in object stores: S3 and what speaks its protocol, Google's, Azure's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from farm.client.http import Http
from farm.client.progress import TransferProgress
from farm.client.repositories import KeptModel
from farm.client.triton import LOCK, check_ours, place
from farm.errors import InvalidRequest, Unavailable
from farm.registry import triton
from farm.registry.triton import Model
from farm.specs import buckets
from farm.store import objects

if TYPE_CHECKING:
    from obstore.store import ObjectStore


def is_bucket(repository: str | Path) -> bool:
    return "://" in str(repository)


class Bucket:
    """A repository below a prefix of a bucket.

    An object is replaced at once, and nothing is renamed: ``config.pbtxt`` alone says what is served. Nothing
    stops a second ``farm sync`` from keeping the same model.

    Parameters:
        url: of the bucket; where it is and the credentials come from the environment.

    Raises:
        InvalidRequest: the URL, or what the environment says.
        ExtraMissing
    """

    def __init__(self, url: str) -> None:
        if not buckets.is_bucket(url):
            # What was given isn't repeated: there may be a password in it.
            raise InvalidRequest(
                f"this isn't a bucket that farm sync writes to: it wants {buckets.FORMS}",
                hint="an endpoint and credentials go into the environment, not into the URL: "
                f"{buckets.VARIABLES['s3']}",
            )
        self._url = url.rstrip("/")
        self._store = objects.opened(url)

    @contextmanager
    def model(self, name: str) -> Iterator[KeptModel]:
        kept = _BucketModel(self._store, self._url, name)
        names, config = kept.top(), kept.read(triton.CONFIG)
        check_ours(f"{self._url}/{name}", config, names)
        if LOCK not in names:
            kept.write(LOCK, b"")
        yield kept


class _BucketModel:
    def __init__(self, store: ObjectStore, url: str, name: str) -> None:
        self._store = store
        self._url = url
        self._name = name

    def top(self) -> set[str]:
        """The names directly below the model."""
        return {path.partition("/")[0] for path in self._sizes("")}

    def read(self, name: str) -> bytes | None:
        import obstore

        with self._reached(), suppress(FileNotFoundError):
            return bytes(obstore.get(self._store, f"{self._name}/{name}").bytes())
        return None

    def write(self, name: str, content: bytes) -> None:
        self._put(name, content)

    def place(
        self,
        http: Http,
        model: Model,
        *,
        why: Mapping[str, str],
        progress: TransferProgress | None = None,
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="farm-sync-") as made:
            place(http, model, Path(made), why=why, progress=progress)
            for path in sorted((Path(made) / str(model.version)).iterdir()):
                self._put(f"{model.version}/{path.name}", path)

    def folders(self) -> list[str]:
        return sorted({path.partition("/")[0] for path in self._sizes("") if "/" in path})

    def files(self, folder: str) -> dict[str, int]:
        return {name: size for name, size in self._sizes(folder).items() if "/" not in name}

    def remove(self, name: str) -> None:
        self._delete([name])

    def remove_folder(self, folder: str) -> None:
        self._delete([f"{folder}/{name}" for name in self._sizes(folder)])

    def _sizes(self, folder: str) -> dict[str, int]:
        """Each object below a folder, by its name there, and its size."""
        import obstore

        prefix = f"{self._name}/{folder}".rstrip("/")
        with self._reached():
            found = [one for some in obstore.list(self._store, prefix) for one in some]
        # An object named like the folder itself is one that a console made for it.
        below = [one for one in found if one["path"].startswith(f"{prefix}/")]
        return {one["path"].removeprefix(f"{prefix}/"): one["size"] for one in below}

    def _put(self, name: str, content: bytes | Path) -> None:
        import obstore

        with self._reached():
            obstore.put(self._store, f"{self._name}/{name}", content)

    def _delete(self, names: list[str]) -> None:
        import obstore

        for name in names:
            with self._reached(), suppress(FileNotFoundError):
                obstore.delete(self._store, f"{self._name}/{name}")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise Unavailable with the store's reason if it fails."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as err:  # the latter: no such bucket, at a write
            raise Unavailable(
                f"{self._url} can't be used: {objects.first_line(err)}",
                hint=buckets.hint(self._url),
            ) from err
