"""Join tokens, and joining by one."""

from __future__ import annotations

from farm.client.noun import Noun, part
from farm.schemas.tokens import JoinView, NewToken, TokenPage, TokenView


class Tokens(Noun):
    """Manages the tokens by which machines join as workers."""

    def create_token(self, *, expires_in_s: int = 3600, uses: int = 1) -> NewToken:
        """Create a join token. The result holds its only copy.

        Parameters:
            uses: how many machines may join by it.

        Raises:
            KeyNeeded, ScopeMissing, InvalidRequest
        """
        request = {"expires_in_s": expires_in_s, "uses": uses}
        # A repeat would create another.
        return self.http.read(NewToken, "POST", "/v1/tokens", json=request, repeatable=False)

    def tokens(self, *, limit: int = 1000) -> list[TokenView]:
        """The farm's join tokens, newest first, including those that open nothing any more."""
        pages = self._pages(TokenPage, "/v1/tokens", {}, limit)
        return [item for page in pages for item in page.items]

    def revoke_token(self, token_id: str) -> TokenView:
        """Revoke a join token. Machines that have joined by it stay.

        Raises:
            NotFound
        """
        return self.http.read(TokenView, "DELETE", f"/v1/tokens/{part(token_id)}")

    def join(self, token: str, name: str, *, holder: str | None = None) -> JoinView:
        """Join as a machine of workers; no key is needed. The result holds its key's only copy.

        Parameters:
            name: the machine's, which no other has.
            holder: the id of the machine's home, by which it may join again under its name.

        Raises:
            JoinRefused: the token is wrong, expired, used or revoked.
            WorkerNameTaken
            Conflict: the farm can't be reached from other machines.
            RateExceeded: too many wrong tokens were sent.
        """
        request = {"token": token, "name": name, "holder": holder}
        # A repeat would spend another use.
        return self.http.read(JoinView, "POST", "/v1/join", json=request, repeatable=False)
