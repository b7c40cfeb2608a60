"""Plugin libraries for a build: copied into its folder and verified there again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from farm.errors import DigestMismatch, EngineBuildFailed, Rejected
from farm.queue.jobs import Claim
from farm.trust import plugins
from workers.runner.app import Context
from workers.runner.hooks import Part

ROLE = "plugin-"  #: followed by the position in the build's options


class Libraries(Part):
    """The libraries a job names, in a folder that nobody else writes to."""

    def __init__(self, context: Context, claim: Claim) -> None:
        self._context = context
        self._digests = claim.params.get("options", {}).get("plugins", ())

    def place(self, workdir: Path) -> dict[str, Path]:
        """Raises:
        EngineBuildFailed: one isn't allow-listed, doesn't match its signature, or this worker
            doesn't trust its key.
        """
        return {
            f"{ROLE}{number}": _verified(self._context, digest, workdir / "plugins" / str(number))
            for number, digest in enumerate(self._digests)
        }


def _verified(context: Context, digest: str, folder: Path) -> Path:
    with context.db.read() as session:
        row = plugins.find(session, digest)
    if row is None:
        raise EngineBuildFailed(
            f"the plugin {digest} is no longer allow-listed",
            hint="add it again: farm plugins add LIBRARY --signature FILE",
        )
    folder.mkdir(parents=True)
    copy = folder / row.name
    try:
        # Verify and load the copy: others may write to the store.
        with context.store.local(digest) as library:
            shutil.copyfile(library, copy)
        content = copy.read_bytes()
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise DigestMismatch(f"the store has other bytes under {digest}")
        plugins.signer(content, row.signature, context.settings.plugin_keys)
    except Rejected as err:
        raise EngineBuildFailed(
            f"the plugin {row.name} isn't loaded: {err.detail}", hint=err.hint
        ) from err
    return copy
