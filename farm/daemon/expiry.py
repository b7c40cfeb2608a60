"""Which leases have expired, by this process's own clock."""

from __future__ import annotations

from collections.abc import Iterable

from farm.queue.leases import Lease


class LeaseExpiry:
    """For how long leases haven't been renewed, by this process' own clock.

    The times that are written in them aren't compared: clocks of machines differ, and jump. Time in
    which nobody looked doesn't count either: whatever stopped this process may have stopped the
    workers too.

    Source: the record version numbers of Amazon's DynamoDB lock client.

    Parameters:
        longest_s: a lease that wasn't renewed for so long has expired.
        interval_s: how often it is looked.
    """

    def __init__(self, *, longest_s: float, interval_s: float) -> None:
        self._longest_s = longest_s
        self._interval_s = interval_s
        self._looked_s = 0.0
        self._silent_s: dict[Lease, float] = {}

    def expired(self, leases: Iterable[Lease], at_s: float) -> list[Lease]:
        """Those of all leases at this time that have expired."""
        watched_s = min(at_s - self._looked_s, 2 * self._interval_s)
        self._looked_s = at_s
        before = self._silent_s
        self._silent_s = {
            lease: before[lease] + watched_s if lease in before else 0.0 for lease in leases
        }
        return [lease for lease, silent_s in self._silent_s.items() if silent_s > self._longest_s]

    def forget(self) -> None:
        """Begin anew with every lease."""
        self._silent_s = {}
