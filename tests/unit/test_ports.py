"""Free ports for the parts of a farm."""

from __future__ import annotations

from farm.local import up


def test_free_ports_that_are_asked_for_together_are_apart() -> None:
    # Asked for one by one, Linux gives two alike among so many for certain.
    assert len(set(up.free_ports(500))) == 500
