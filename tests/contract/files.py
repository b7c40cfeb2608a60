"""Jobs whose outputs are files in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from farm.database.session import Database
from farm.store.base import Store
from tests.ledger import Ledger


class Files(Ledger):
    """A ledger whose jobs leave files, as workers' do."""

    def __init__(self, db: Database, store: Store) -> None:
        super().__init__(db)
        self.store = store

    def succeed(self, claim, digest="", doubts=(), **told):
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "made"
            path.write_bytes(f"made{claim.job_id:03}".encode())  # as long as a ledger says
            digest = self.store.take(path).digest
        return super().succeed(claim, digest, doubts, **told)


def run_with_files(db: Database, store: Store) -> None:
    """Run what is queued until nothing is."""
    Files(db, store).run_all()
