"""One kind of thing that a farm has, and its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from farm.client.http import Http
from farm.schemas.base import Page

P = TypeVar("P", bound=Page)

_PAGE = 200


class Noun:
    """Calls about one kind of thing, over a farm's connection. ``Farm`` is all of them together."""

    def __init__(self, http: Http) -> None:
        self.http = http

    def _pages(
        self, shape: type[P], path: str, query: Mapping[str, Any], limit: int
    ) -> Iterator[P]:
        """The pages that hold the first ``limit`` items."""
        cursor = None
        while limit > 0:
            size = min(limit, _PAGE)
            params = given({**query, "limit": size, "cursor": cursor})
            page = self.http.read(shape, "GET", path, params=params)
            yield page
            limit, cursor = limit - size, page.cursor
            if cursor is None:
                return


def given(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query without unset parameters."""
    return {name: value for name, value in query.items() if value is not None}


def part(name: str) -> str:
    """A name as a single path segment: slashes are escaped."""
    return quote(name, safe="")
