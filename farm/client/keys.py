"""API keys, and the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farm.client.noun import Noun, part
from farm.schemas.keys import AuditEntry, AuditPage, KeyLimits, KeyPage, KeyView, Me, NewKey
from farm.schemas.logins import LoginLink


class Keys(Noun):
    """Manages API keys and reads the audit log."""

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_in_s: int | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> NewKey:
        """Create a key. The result holds its only copy.

        Parameters:
            scopes: ``read``, ``submit``, ``promote``, ``admin``.
            limits: as of ``set_key_limits``.

        Raises:
            KeyNeeded, ScopeMissing, InvalidRequest
        """
        request: dict[str, Any] = {
            "name": name,
            "scopes": list(scopes),
            "expires_in_s": expires_in_s,
        }
        if limits:  # earlier farms know none
            request["limits"] = dict(limits)
        # A repeat would create another.
        return self.http.read(NewKey, "POST", "/v1/keys", json=request, repeatable=False)

    def login_link(self, path: str = "/") -> LoginLink:
        """A link that opens the farm's page in a browser, logged in with this key.

        It works once, within two minutes.

        Parameters:
            path: the page: ``/builds/ID``.
        """
        query = {"next": path}
        return self.http.read(LoginLink, "POST", "/v1/login/links", params=query, repeatable=False)

    def keys(self, *, limit: int = 1000) -> list[KeyView]:
        """The farm's keys, newest first, including expired and revoked ones."""
        pages = self._pages(KeyPage, "/v1/keys", {}, limit)
        return [item for page in pages for item in page.items]

    def revoke_key(self, key_id: str) -> KeyView:
        """Revoke a key.

        Raises:
            NotFound
            Conflict: it is the last one that can create others.
        """
        return self.http.read(KeyView, "DELETE", f"/v1/keys/{part(key_id)}")

    def me(self) -> Me:
        """Who the farm takes this client for, what it may use and what it uses."""
        return self.http.read(Me, "GET", "/v1/me")

    def key_limits(self, key_id: str) -> KeyLimits:
        """A key's limits, and what it uses.

        Raises:
            NotFound
        """
        return self.http.read(KeyLimits, "GET", f"/v1/keys/{part(key_id)}/limits")

    def set_key_limits(self, key_id: str, **limits: Any) -> KeyLimits:
        """Change some limits of a key.

        Parameters:
            limits: ``builds``, ``gpu_minutes_day``, ``gpu_minutes_month``, ``stored_bytes``,
                ``requests_per_minute``: a number, ``"unlimited"``, or None for the farm's default.

        Raises:
            NotFound, InvalidRequest
        """
        return self.http.read(KeyLimits, "PATCH", f"/v1/keys/{part(key_id)}/limits", json=limits)

    def audit(
        self, *, key: str | None = None, action: str | None = None, limit: int = 50
    ) -> list[AuditEntry]:
        """Who changed what, newest first."""
        pages = self._pages(AuditPage, "/v1/audit", {"key": key, "action": action}, limit)
        return [item for page in pages for item in page.items]
