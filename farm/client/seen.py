"""The moves of aliases that this user has seen, by farm: an older answer is a replay."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path

from farm.client.pins import alone, replaced
from farm.client.trust import Trust
from farm.errors import FarmError, SignatureRefused, SigningKeyUnknown
from farm.schemas.engines import Match
from farm.signing import moves
from farm.specs.names import folded

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Seen:
    """The highest revision of each alias that a farm was seen to sign."""

    def __init__(self, file: Path, url: str) -> None:
        self._file = file
        self._url = url

    @classmethod
    def of_user(cls, home: Path, url: str) -> Seen:
        return cls(home / "known-aliases.json", url)

    def check(self, found: Match, trust: Trust, model: str, alias: str) -> None:
        """Refuse an answer to a pull by an alias that is older than one seen before, and remember it.

        Parameters:
            trust: what the farm's signatures are verified with.
            model, alias: what was asked for.

        Raises:
            SignatureRefused: the farm has signed another version, or once signed which it is.
        """
        name = f"{folded(model)}@{alias}"
        seen = self._all().get(self._url, {}).get(name, 0)
        if found.statement is None:
            if seen:
                raise SignatureRefused(
                    f"{self._url} has signed which version {model}@{alias} is, and doesn't now",
                    hint="somebody may be answering in its place; if its operator has called a signing key "
                    "compromised, have them sign the alias again: farm promote MODEL VERSION ALIAS",
                )
            return
        try:
            moved = moves.move_in(trust.opened(found.statement.encode()))
        except SigningKeyUnknown:
            return  # nothing of this farm is believed yet: its engine won't be either
        version = found.engine.version
        if (folded(moved.model), moved.alias) != (folded(model), alias):
            raise SignatureRefused(
                f"what is signed of {model}@{alias} is of {moved.model}@{moved.alias}"
            )
        if moved.revision < seen:
            raise SignatureRefused(
                f"{self._url} answers with move {moved.revision} of {model}@{alias}, and you have seen move "
                f"{seen}: it is an old answer",
                hint="somebody may be answering in its place. If its operator has restored a backup: "
                "farm signing forget",
            )
        if moved.version is not None and moved.version != version:
            raise SignatureRefused(
                f"{model}@{alias} is version {moved.version}, as is signed, and the answer is of version "
                f"{version}",
                hint="try again: it may have been moved just now; if it stays, alert the farm's operator",
            )
        if moved.revision > seen:
            self._remember(name, moved.revision)

    def forget(self) -> None:
        """Forget what was seen of the farm."""
        if self._url in self._all():
            with alone(self._file):
                known = dict(self._all())
                known.pop(self._url, None)
                replaced(self._file, known)

    def _remember(self, name: str, revision: int) -> None:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with alone(self._file):
                known = {url: dict(theirs) for url, theirs in self._all().items()}
                mine = known.setdefault(self._url, {})
                mine[name] = max(revision, mine.get(name, 0))
                replaced(self._file, known)
        except OSError as err:
            # A job's home may be read-only: it remembers nothing, and has verified all the same.
            if err.errno not in _READ_ONLY:
                raise

    def _all(self) -> Mapping[str, Mapping[str, int]]:
        """
        Raises:
            FarmError: the file is damaged.
        """
        try:
            known = json.loads(self._file.read_bytes())
            return {
                str(url): {str(name): int(revision) for name, revision in theirs.items()}
                for url, theirs in known.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as err:
            # Not taken for an empty one: whoever damages it mustn't be believed.
            raise FarmError(
                f"can't read {self._file}, which has the moves of aliases that you have seen: {err}",
                hint="repair it, or remove it to begin anew",
            ) from err
