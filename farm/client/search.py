"""Search: what in the farm has this name, label, note, digest or id."""

from __future__ import annotations

from collections.abc import Sequence

from farm.client.noun import Noun
from farm.schemas.search import Hit, SearchPage


class Search(Noun):
    """Finds models, versions, engines and builds."""

    def search(
        self,
        query: str = "",
        *,
        kinds: Sequence[str] = (),
        labels: Sequence[str] = (),
        since: str | None = None,
        until: str | None = None,
        limit: int = 50,
    ) -> list[Hit]:
        """What matches all words: models first, then versions, engines and builds, newest first.

        Parameters:
            query: words: part of a name or a note, the beginning of a file's digest (8 digits or more) or of
                an id, or a label: ``resnet team=vision``.
            kinds: only these: ``model``, ``version``, ``engine``, ``build``.
            labels: only with these: ``team=vision``, or ``team`` for any value.
            since, until: days or times: ``2026-11-01``.

        Raises:
            InvalidRequest: there is nothing to search for, or too much.
        """
        asked = {
            "q": query or None,
            "kind": list(kinds) or None,
            "label": list(labels) or None,
            "since": since,
            "until": until,
        }
        pages = self._pages(SearchPage, "/v1/search", asked, limit)
        return [item for page in pages for item in page.items]
