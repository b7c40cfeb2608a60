"""A worker takes no work before it has shown that its store is the farm's."""

from __future__ import annotations

import pytest

from farm.errors import StorageUnavailable
from farm.store import proof
from farm.store.local import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_a_store_keeps_the_identity_that_it_was_given(store):
    assert store.identity() is None
    first = store.identify()
    assert (store.identify(), store.identity()) == (first, first)


def test_the_api_makes_a_store_the_farms_and_a_worker_with_the_same_one_proves_it(ledger, store):
    with pytest.raises(StorageUnavailable, match="has no artifact store yet"):
        proof.prove(ledger.db, store)
    proof.adopt(ledger.db, store)
    proof.adopt(ledger.db, LocalStore(store.root))
    proof.prove(ledger.db, LocalStore(store.root))


@pytest.mark.parametrize("used", [False, True], ids=["an empty folder", "another farm's"])
def test_a_worker_with_another_store_is_told_so(ledger, store, tmp_path, used):
    proof.adopt(ledger.db, store)
    other = LocalStore(tmp_path / "other")
    if used:
        other.identify()
    with pytest.raises(StorageUnavailable, match="isn't the farm's artifact store") as refused:
        proof.prove(ledger.db, other)
    assert "FARM_STORE" in refused.value.hint
    if not used:
        assert not other.root.exists(), "a proof writes nothing"


def test_an_api_with_another_store_does_not_take_the_farm_over(ledger, store, tmp_path):
    proof.adopt(ledger.db, store)
    other = LocalStore(tmp_path / "other")
    with pytest.raises(StorageUnavailable):
        proof.adopt(ledger.db, other)
    assert other.identity() is None, "else it could never become the farm's"
    proof.prove(ledger.db, store)
