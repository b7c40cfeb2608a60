"""Followers of builds, while the one that looks for their events has trouble."""

from __future__ import annotations

import anyio
import pytest
from sqlalchemy.exc import OperationalError

from farm.api.streams import Streams
from farm.builds.cancel import cancel_build
from farm.database.commits import Watch
from farm.errors import DatabaseUnavailable
from tests.contract.conftest import request


@pytest.mark.parametrize(
    "trouble",
    [
        DatabaseUnavailable("the database is away"),
        OperationalError("LISTEN", {}, Exception("the connection was cut")),
        OSError("no file descriptors are left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_wait_for_commits_that_fails_ends_no_stream(api, db, monkeypatch, trouble):
    build = api.post("/v1/builds", json=request(api)).json()["id"]
    wait, failures = Watch.wait, [trouble]

    def failing(watch: Watch) -> None:
        if failures:
            raise failures.pop()
        wait(watch)

    def cancel() -> None:
        with db.write() as session:
            cancel_build(session, build)

    monkeypatch.setattr(Watch, "wait", failing)
    monkeypatch.setattr("farm.api.streams._AWAY_S", 0.01)

    async def follow() -> list[bytes]:
        stream = await Streams(db).follow(build, 0)
        found: list[bytes] = []
        with anyio.fail_after(60):
            async for piece in stream._pieces():
                found.append(piece)
                if len(found) == 1:
                    while failures:
                        await anyio.sleep(0.01)
                    await anyio.to_thread.run_sync(cancel)
        stream._hub.leave(build, stream._feed)
        return found

    told = b"".join(anyio.run(follow))
    assert b'"state":"cancelled"' in told
