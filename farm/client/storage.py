"""Maintenance of the farm's store: garbage collection and scrubbing."""

from __future__ import annotations

from pathlib import Path

from farm.client.noun import Noun, part
from farm.client.progress import TransferProgress
from farm.client.submission import Files
from farm.schemas.storage import GcReport, ScrubReport, StoreView
from farm.schemas.usage import Usage
from farm.schemas.uses import BlobUses

_LONGEST_S = 3600.0


class Storage(Noun):
    """Maintains the farm's store."""

    def which(self, file: str | Path, *, progress: TransferProgress | None = None) -> BlobUses:
        """What a file is to the farm: an engine, a model's source, data of builds. Only its digest is sent.

        Parameters:
            file: or a digest.

        Raises:
            NotFound: the farm doesn't know it.
            InvalidRequest: there is no such file, or it is empty.
        """
        digest = Files(progress).digest(file)
        return self.http.read(BlobUses, "GET", f"/v1/blobs/{part(digest)}/uses")

    def gc(self, *, older_than_s: float = 86400.0, dry_run: bool = False) -> GcReport:
        """Remove blobs that nothing in the farm's database refers to.

        Parameters:
            older_than_s: keep blobs uploaded or requested within this time.
            dry_run: remove nothing, and report what would be removed.

        Raises:
            InvalidRequest, Unavailable
        """
        return self.http.read(
            GcReport,
            "POST",
            "/v1/gc",
            json={"dry_run": dry_run, "older_than_s": older_than_s},
            # It responds when finished; a repeat would report only the remainder.
            repeatable=False,
            timeout=_LONGEST_S,
        )

    def usage(self, model: str | None = None) -> Usage:
        """What takes the store's disk, by kind and by model.

        Parameters:
            model: list this one alone.

        Raises:
            NotFound, Unavailable
        """
        params = {} if model is None else {"model": model}
        return self.http.read(Usage, "GET", "/v1/usage", params=params, timeout=_LONGEST_S)

    def store(self) -> StoreView:
        """Where the farm's artifacts are, and whether that can be read and written.

        Raises:
            Unavailable
        """
        return self.http.read(StoreView, "GET", "/v1/store")

    def scrub(self) -> ScrubReport:
        """Hash every blob in the farm's store and quarantine damaged ones.

        Raises:
            Unavailable
        """
        return self.http.read(
            ScrubReport, "POST", "/v1/scrub", repeatable=False, timeout=_LONGEST_S
        )
