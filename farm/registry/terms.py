"""What a search asks for: words, labels and times. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from farm.errors import InvalidRequest
from farm.schemas.labels import LabelFilter
from farm.schemas.search import Kind

_MOST_WORDS = 8
_LABEL = TypeAdapter(LabelFilter)
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{4,16}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
#: Sorts after whatever continues a digest or an id.
_LAST = "z" * 16

#: The first and the last of what begins alike.
Range = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Word:
    """Part of a name or a note; or the beginning of a digest or an id, if it can be that."""

    text: str
    digest: Range | None = None
    id: Range | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    words: Sequence[Word] = ()  #: each must match
    labels: Sequence[str] = ()  #: each must be there
    since: datetime | None = None
    until: datetime | None = None  #: not including it
    kinds: Collection[Kind] = field(default_factory=lambda: frozenset(Kind))


def parsed(
    query: str,
    *,
    labels: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    kinds: Collection[Kind] = (),
) -> Terms:
    """What a query means: ``resnet team=vision since=2026-11-01``.

    Raises:
        InvalidRequest: it asks for nothing or too much, or a word can't be a label or a time.
    """
    words: list[Word] = []
    wanted = list(labels)
    for text in query.split():
        key, equals, value = text.partition("=")
        if not equals:
            words.append(_word(text))
        elif key == "since":
            since = value
        elif key == "until":
            until = value
        else:
            wanted.append(_label(text))
    if len(words) + len(wanted) > _MOST_WORDS:
        raise InvalidRequest(
            f"the search has more than {_MOST_WORDS} words and labels", hint="search for fewer"
        )
    if not (words or wanted or since or until):
        raise InvalidRequest(
            "nothing to search for",
            hint="part of a name or a note, the beginning of a digest (8 digits) or an id, a label "
            "(team=vision), or since=2026-11-01",
        )
    return Terms(
        words=words,
        labels=wanted,
        since=moment(since) if since else None,
        until=moment(until, end=True) if until else None,
        kinds=frozenset(kinds or Kind),
    )


def _word(text: str) -> Word:
    low = text.lower()
    digest = _DIGEST.fullmatch(low)
    return Word(
        text=text,
        digest=_beginning(f"sha256:{digest[1]}") if digest else None,
        id=_beginning(low) if _ID.fullmatch(low) else None,
    )


def _beginning(text: str) -> Range:
    return text, text + _LAST


def _label(text: str) -> str:
    try:
        return _LABEL.validate_python(text)
    except ValidationError:
        raise InvalidRequest(
            f"{text!r} can't be a label", hint="a label is a key and a value: team=vision"
        ) from None


def moment(text: str, *, end: bool = False) -> datetime:
    """A time in UTC.

    Parameters:
        end: of a day, its end.

    Raises:
        InvalidRequest
    """
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        return found + timedelta(days=1) if end and _DAY.fullmatch(text) else found
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{text!r} isn't a time", hint="use a day, 2026-11-01, or a time: 2026-11-01T08:00:00Z"
        ) from None
