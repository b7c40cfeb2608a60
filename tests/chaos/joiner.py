"""A machine that had nothing of the farm's but a token, and starts by what it kept of the farm's answer."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import httpx2
from sqlalchemy import select, update

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Event, JoinToken
from farm.local import joined
from farm.specs.states import JobState
from farm.trust import credentials, keys
from tests.chaos.part import Part
from tests.e2e.live import wait_until, workers
from tests.keys import bearer

#: Until what the storm may just have restarted is there.
_PATIENCE_S = 180.0


class Joiner:
    """One such machine.

    Parameters:
        part: its worker, which knows of the farm only where its own home is.
        url: the API's.
        key: an administrator's.
    """

    def __init__(self, part: Part, home: Path, url: str, key: str) -> None:
        self.part = part
        self.home = home
        self._url = url
        self._key = key
        self._tokens: list[str] = []

    def join(self) -> None:
        """Start by a new token, and wait until it works; an earlier key of this machine's ends."""
        wait_until("the API and the broker are there", self._is_ready, _PATIENCE_S)
        wait_until("there is a token", self._has_token, _PATIENCE_S)
        self._start()
        wait_until("the machine has joined", self._is_at_work, _PATIENCE_S)

    def _has_token(self) -> bool:
        answer = self._ask("POST", "/v1/tokens", {})
        if answer is None or not answer.is_success:
            return False
        self._tokens.append(answer.json()["token"])
        return True

    def _start(self) -> None:
        options = ("--join", self._url, "--name", self.part.name)
        self.part.start(*options, more={"FARM_JOIN_TOKEN": self._tokens[-1]})

    def _is_at_work(self) -> bool:
        """Whether all that it needs was there, and its worker has been started."""
        if (
            self.part.has_ended
        ):  # something was away for a moment; whoever runs it does the same again
            self._start()
        return self.has_joined and bool(workers(self.home))

    @property
    def has_joined(self) -> bool:
        """Whether it has kept the farm's answer to its last token."""
        found = joined.read(self.home) if self._tokens else None
        return found is not None and found.token_id == self._token_id

    def revoke_token(self) -> bool:
        """Revoke the token that it joined by; whether the API was there to do it."""
        answer = self._ask("DELETE", f"/v1/tokens/{self._token_id}")
        return answer is not None and answer.is_success

    def expire_token(self, db: Database) -> bool:
        """Let the token that it joined by have expired; whether it hadn't."""
        at = now() - timedelta(days=1)  # more than clocks are off by
        with db.write() as session:
            found = session.execute(
                update(JoinToken)
                .where(JoinToken.id == self._token_id, JoinToken.expires_at > at)
                .values(expires_at=at)
                .returning(JoinToken.id)
            )
            return found.first() is not None

    def audited(self, db: Database) -> int:
        """Check what it kept, its tokens and its keys; the attempts that it made at jobs.

        Raises:
            AssertionError
        """
        file = joined.file_in(self.home)
        assert file.stat().st_mode & 0o777 == 0o600
        kept = file.read_text()
        assert not any(token in kept for token in self._tokens)
        with db.read() as session:
            called = f"worker@{self.part.name}"
            mine = [row.id for row in keys.live(session) if row.name == called]
            assert mine == [json.loads(kept)["key_id"]], "it has another key than the one it kept"
            ids = [credentials.join_id_of(token) for token in self._tokens]
            used = session.scalars(select(JoinToken.used).where(JoinToken.id.in_(ids))).all()
            assert used == [1] * len(ids), "a token was used twice, or for nothing"
            began = select(Event.data).where(Event.kind == "job", Event.state == JobState.RUNNING)
            worker = f"cpu@{self.part.name}"
            return sum(data.get("worker") == worker for data in session.scalars(began))

    @property
    def _token_id(self) -> str:
        token_id = credentials.join_id_of(self._tokens[-1])
        assert token_id is not None
        return token_id

    def _is_ready(self) -> bool:
        """Whether the API takes work, and reaches the broker: whoever joins is to reach it, too."""
        answer = self._ask("GET", "/readyz")
        return (
            answer is not None and answer.is_success and answer.json()["checks"]["broker"] == "ok"
        )

    def _ask(self, method: str, path: str, body: object = None) -> httpx2.Response | None:
        """The API's answer; None while it is away."""
        with suppress(httpx2.TransportError):
            return httpx2.request(
                method, f"{self._url}{path}", json=body, timeout=30, headers=bearer(self._key)
            )
        return None
