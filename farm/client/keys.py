"""Keys to the farm, and the audit of what was done with them."""

from __future__ import annotations

from collections.abc import Sequence

from farm.client.noun import Noun, part
from farm.schemas.keys import AuditEntry, AuditPage, KeyPage, KeyView, NewKey


class Keys(Noun):
    """Who may do what, and who did."""

    def create_key(
        self, name: str, scopes: Sequence[str], *, expires_in_s: int | None = None
    ) -> NewKey:
        """Make a key. What this returns is the only copy of it.

        Parameters:
            scopes: ``read``, ``submit``, ``promote``, ``admin``.

        Raises:
            KeyNeeded, ScopeMissing, InvalidRequest
        """
        request = {"name": name, "scopes": list(scopes), "expires_in_s": expires_in_s}
        # A repeat would make another.
        return self.http.read(NewKey, "POST", "/v1/keys", json=request, repeatable=False)

    def keys(self, *, limit: int = 1000) -> list[KeyView]:
        """The farm's keys, the newest first, also those that open nothing any more."""
        pages = self._pages(KeyPage, "/v1/keys", {}, limit)
        return [item for page in pages for item in page.items]

    def revoke_key(self, key_id: str) -> KeyView:
        """Let a key open nothing any more.

        Raises:
            NotFound
            Conflict: it is the last one that can make others.
        """
        return self.http.read(KeyView, "DELETE", f"/v1/keys/{part(key_id)}")

    def audit(
        self, *, key: str | None = None, action: str | None = None, limit: int = 50
    ) -> list[AuditEntry]:
        """Who changed what, the newest first."""
        pages = self._pages(AuditPage, "/v1/audit", {"key": key, "action": action}, limit)
        return [item for page in pages for item in page.items]
