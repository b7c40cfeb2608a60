"""Whose port it is that this user's own key would be sent to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from farm.client import Backoff, Farm
from farm.errors import InvalidRequest
from farm.machine import listeners
from farm.testing.stub_farm import StubFarm
from farm.trust import credentials

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  {uid}        0 1 1\n"
MINE = credentials.new()[0]
V4, ANY4, OTHER4 = "0100007F", "00000000", "0200007F"
V6, ANY6 = "0" * 24 + "01000000", "0" * 32


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, *rows: tuple[str, int, int]) -> None:
    """Have the kernel say that these listen: address, port, user."""
    tables = {4: folder / "tcp", 6: folder / "tcp6"}
    for version, table in tables.items():
        lines = [
            ROW.format(local=f"{address}:{port:04X}", state="0A", uid=uid)
            for address, port, uid in rows
            if len(address) == (8 if version == 4 else 32)
        ]
        table.write_text(HEAD + "".join(lines))
    monkeypatch.setattr(listeners, "_TABLES", tables)


def test_a_port_of_ones_own_is_known_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listeners.owners("127.0.0.1", server.getsockname()[1]) == {os.getuid()}


@pytest.mark.parametrize(
    ("rows", "host", "expected"),
    [
        ([(V4, 8000, 7)], "127.0.0.1", {7}),
        ([(V4, 8001, 7)], "127.0.0.1", set()),
        ([(ANY4, 8000, 7)], "127.0.0.1", {7}),
        ([(OTHER4, 8000, 7)], "127.0.0.1", set()),
        ([(ANY6, 8000, 7)], "127.0.0.1", {7}),
        ([(V4, 8000, 7), (ANY6, 8000, 8)], "127.0.0.1", {7}),
        ([(V4, 8000, 7), (V6, 8000, 8)], "::1", {8}),
        ([(V4, 8000, 7), (V6, 8000, 8)], "localhost", {7, 8}),
    ],
)
def test_whoever_may_answer_at_an_address_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rows: list[tuple[str, int, int]],
    host: str,
    expected: set[int],
) -> None:
    told(monkeypatch, tmp_path, *rows)
    assert listeners.owners(host, 8000) == expected


def test_where_the_kernel_says_nothing_nobody_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(listeners, "_TABLES", {4: tmp_path / "none"})
    assert listeners.owners("127.0.0.1", 8000) == set()


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FARM_KEY", raising=False)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    file = credentials.home_file(tmp_path)
    file.write_text(f"{MINE}\n")
    file.chmod(0o600)
    return file


def sent(stub: StubFarm) -> set[str | None]:
    return {headers.get("authorization") for _, _, headers in stub.seen}


def test_the_key_at_home_is_not_sent_to_another_users_port(
    stub: StubFarm, key_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = int(stub.url.rpartition(":")[2])
    with Farm(stub.url, backoff=Backoff(first_s=0)) as farm:
        farm.models()
        assert sent(stub) == {f"Bearer {MINE}"}
        stub.seen.clear()
        stranger = max(os.getuid(), key_file.stat().st_uid) + 1
        told(monkeypatch, tmp_path, (V4, port, stranger))
        with pytest.raises(InvalidRequest, match=rf"another user of this machine \({stranger}\)"):
            farm.models()
    assert stub.seen == []


def test_a_key_that_was_given_is_sent_to_whatever_farm_was_named(
    stub: StubFarm, key_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told(monkeypatch, tmp_path, (V4, int(stub.url.rpartition(":")[2]), 4242))
    with Farm(stub.url, key="farm_theirs", backoff=Backoff(first_s=0)) as farm:
        farm.models()
    assert sent(stub) == {"Bearer farm_theirs"}
