"""Targets as users write them: ``[RUNTIME:]GPU[:PRECISION,…]``. No precision is a runtime or a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from farm.specs.precision import Precision

_PRECISIONS = frozenset(Precision)


class TargetText(NamedTuple):
    """A target's text, and the precisions that it names itself; empty: those of the request."""

    target: str
    precisions: tuple[Precision, ...] = ()


def split(asked: str) -> TargetText:
    """``tensorrt:h100:fp8,int8`` → ``tensorrt:h100`` with fp8 and int8."""
    target, colon, last = asked.rpartition(":")
    words = [word.strip().lower() for word in last.split(",")]
    if not colon or not _PRECISIONS.issuperset(words):
        return TargetText(asked.strip())
    return TargetText(target.strip(), tuple(map(Precision, dict.fromkeys(words))))


def joined(words: Iterable[str]) -> list[str]:
    """Give precisions back to the target before them: ``t4:fp16``, ``h100:fp8``, ``int8`` → ``t4:fp16``,
    ``h100:fp8,int8``.

    Parameters:
        words: what stood between commas.
    """
    found: list[str] = []
    for word in words:
        if word.lower() in _PRECISIONS and found and split(found[-1]).precisions:
            found[-1] += f",{word}"
        else:
            found.append(word)
    return list(dict.fromkeys(found))
