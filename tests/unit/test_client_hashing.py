"""A digest that is computed in a thread of its own is that of the same bytes."""

from __future__ import annotations

import hashlib
import random

import pytest

from farm.client.hashing import Hashing

BYTES = random.Random(7).randbytes(3 * 2**20 + 11)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("piece_bytes", [65_536, 99_991, 2**20, 2**20 + 1, len(BYTES)])
def test_the_digest_is_the_same_however_the_bytes_come(piece_bytes: int) -> None:
    with Hashing() as hashing:
        for start in range(0, len(BYTES), piece_bytes):
            hashing.update(BYTES[start : start + piece_bytes])
        assert hashing.digest == sha256(BYTES)


def test_a_digest_on_the_way_changes_nothing() -> None:
    with Hashing() as hashing:
        assert hashing.digest == sha256(b"")
        hashing.update(BYTES[:1_500_000])
        assert hashing.digest == hashing.digest == sha256(BYTES[:1_500_000])
        hashing.update(BYTES[1_500_000:])
        assert hashing.digest == sha256(BYTES)


def test_a_digest_that_is_begun_again_knows_nothing_of_the_earlier_bytes() -> None:
    with Hashing() as hashing:
        hashing.update(BYTES)
        hashing.restart()
        hashing.update(b"an engine")
        assert hashing.digest == sha256(b"an engine")
