"""Deletes engines, versions, models, intermediates and uploads."""

from __future__ import annotations

from pathlib import Path

from farm.client.noun import Noun, part
from farm.client.progress import TransferProgress
from farm.client.submission import Files
from farm.schemas.deletion import Deletion, UploadDeleted

_LONGEST_S = 600.0


class Deletions(Noun):
    """Deletes what the farm holds. A dry run changes nothing and says what would go."""

    def delete_engine(self, engine_id: str, *, dry_run: bool = False) -> Deletion:
        """Delete an engine with all its judgements.

        Raises:
            Conflict: an alias names its version, or a build that wants it is running.
            NotFound, ScopeMissing
        """
        return self._delete(f"/v1/engines/{part(engine_id)}", dry_run)

    def delete_version(self, model: str, version: int, *, dry_run: bool = False) -> Deletion:
        """Delete a version with its engines; its number is never given again.

        Raises:
            Conflict: an alias names it, or a build of it is running.
            NotFound, ScopeMissing
        """
        return self._delete(f"/v1/models/{part(model)}/versions/{version}", dry_run)

    def delete_model(self, model: str, *, dry_run: bool = False) -> Deletion:
        """Delete all versions of a model.

        Raises:
            Conflict: an alias names one, or a build is running.
            NotFound, ScopeMissing
        """
        return self._delete(f"/v1/models/{part(model)}", dry_run)

    def delete_intermediates(
        self, model: str, version: int | None = None, *, dry_run: bool = False
    ) -> Deletion:
        """Delete what was made between sources and engines; the engines stay.

        Parameters:
            version: by default all.

        Raises:
            Conflict: a build is running.
            NotFound, ScopeMissing
        """
        of = "" if version is None else f"/versions/{version}"
        return self._delete(f"/v1/models/{part(model)}{of}/intermediates", dry_run)

    def delete_upload(
        self, file: str | Path, *, progress: TransferProgress | None = None
    ) -> UploadDeleted:
        """Delete an upload that nothing refers to.

        Parameters:
            file: or a digest.

        Raises:
            Conflict: names what refers to it.
            NotFound, ScopeMissing
        """
        digest = Files(progress).digest(file)
        path = f"/v1/blobs/{part(digest)}"
        return self.http.read(UploadDeleted, "DELETE", path, repeatable=False)

    def _delete(self, path: str, dry_run: bool) -> Deletion:
        return self.http.read(
            Deletion,
            "DELETE",
            path,
            params={"dry_run": True} if dry_run else {},
            repeatable=dry_run,
            timeout=_LONGEST_S,
        )
