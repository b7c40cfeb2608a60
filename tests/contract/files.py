"""Jobs whose outputs are files in the store."""

from __future__ import annotations

from farm.database.session import Database
from farm.store.local import LocalStore
from tests.ledger import Ledger


class Files(Ledger):
    """A ledger whose jobs leave files, as workers' do."""

    def __init__(self, db: Database, store: LocalStore) -> None:
        super().__init__(db)
        self.store = store

    def succeed(self, claim, digest="", doubts=(), **told):
        path = self.store.root / f"made-{claim.job_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"made{claim.job_id:03}".encode())  # as long as a ledger says
        return super().succeed(claim, self.store.take(path).digest, doubts, **told)


def run_with_files(db: Database, store: LocalStore) -> None:
    """Run what is queued until nothing is."""
    Files(db, store).run_all()
