"""Pages of a list: one row more than a page holds is looked for; it tells whether there is another page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")
Mark = TypeVar("Mark")

MOST = 50
LOOKED_FOR = MOST + 1


def cut(found: Sequence[Row], mark: Callable[[Row], Mark]) -> tuple[Sequence[Row], Mark | None]:
    """A page's rows, and the cursor of the next page if there is one.

    Parameters:
        found: up to ``LOOKED_FOR``.
        mark: a row's cursor, after which the next page begins.
    """
    rows = found[:MOST]
    return rows, mark(rows[-1]) if len(found) > MOST else None
