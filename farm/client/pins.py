"""The signing keys that this user knows, by farm: kept in one file in FARM_HOME, beside the key."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from farm.errors import FarmError
from farm.signing import keys
from farm.signing.keys import PublicKey


class Pins:
    """Public keys by a farm's address."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def of_user(cls, home: Path) -> Pins:
        return cls(home / "known-farms.json")

    def of(self, url: str) -> list[PublicKey]:
        """The keys known of a farm; none if it was never met.

        Raises:
            FarmError: the file is damaged.
        """
        return self.all().get(url, [])

    def all(self) -> Mapping[str, list[PublicKey]]:
        """Every farm's keys.

        Raises:
            FarmError: the file is damaged.
        """
        try:
            known = json.loads(self.file.read_bytes())
            return {
                str(url): [keys.read(str(pem).encode()) for pem in pems]
                for url, pems in known.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, FarmError) as err:
            # Not taken for an empty one: whoever damages it mustn't be trusted anew.
            raise FarmError(
                f"can't read {self.file}, which has the signing keys of the farms you know: {err}",
                hint="repair it, or remove it to get to know each farm anew",
            ) from err

    def pin(self, url: str, known: Iterable[PublicKey]) -> None:
        """Know exactly these keys of a farm; none to forget it."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(self.file):
            pems = {one: [key.pem for key in theirs] for one, theirs in self.all().items()}
            pems[url] = [key.pem for key in known]
            if not pems[url]:
                del pems[url]
            replaced(self.file, pems)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait for other processes that change a file: what one of them has just written mustn't be undone."""
    import fcntl

    lock = file.with_name(f".{file.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(lock, flags, 0o600), "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def replaced(file: Path, value: object) -> None:
    """Write a file's JSON whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w") as fresh:
            json.dump(value, fresh, indent=2)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
