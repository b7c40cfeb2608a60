"""The farm's store: what nothing needs is removed, what is damaged set aside."""

from __future__ import annotations

from farm.client.noun import Noun
from farm.schemas.storage import GcReport, ScrubReport

_LONGEST_S = 3600.0


class Storage(Noun):
    """The upkeep of the farm's store."""

    def gc(self, *, older_than_s: float = 86400.0, dry_run: bool = False) -> GcReport:
        """Remove from the farm's store what nothing in its database refers to.

        Parameters:
            older_than_s: what was put or asked for since then is kept.
            dry_run: remove nothing, and report what would be removed.

        Raises:
            InvalidRequest, Unavailable
        """
        return self.http.read(
            GcReport,
            "POST",
            "/v1/gc",
            json={"dry_run": dry_run, "older_than_s": older_than_s},
            # It answers when it is done; a repeat would report only what was left to do.
            repeatable=False,
            timeout=_LONGEST_S,
        )

    def scrub(self) -> ScrubReport:
        """Hash every blob of the farm's store, and set aside those that are damaged.

        Raises:
            Unavailable
        """
        return self.http.read(
            ScrubReport, "POST", "/v1/scrub", repeatable=False, timeout=_LONGEST_S
        )
