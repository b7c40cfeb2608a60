"""Which leases have expired, by this process's own clock."""

from __future__ import annotations

from collections.abc import Iterable

from farm.queue.leases import Lease


class LeaseExpiry:
    """Tracks how long leases haven't been renewed, by this process's own clock.

    Timestamps in the leases aren't compared, since machines' clocks differ and jump. Time between checks that
    came late doesn't count either: whatever stopped this process may have stopped the workers too.

    Source: the record version numbers of Amazon's DynamoDB lock client.

    Parameters:
        longest_s: a lease not renewed for this long has expired.
        interval_s: interval between checks.
    """

    def __init__(self, *, longest_s: float, interval_s: float) -> None:
        self._longest_s = longest_s
        self._interval_s = interval_s
        self._looked_s = 0.0
        self._silent_s: dict[Lease, float] = {}

    def expired(self, leases: Iterable[Lease], at_s: float) -> list[Lease]:
        """Given all current leases, those that have expired."""
        watched_s = min(at_s - self._looked_s, 2 * self._interval_s)
        self._looked_s = at_s
        before = self._silent_s
        self._silent_s = {
            lease: before[lease] + watched_s if lease in before else 0.0 for lease in leases
        }
        return [lease for lease, silent_s in self._silent_s.items() if silent_s > self._longest_s]

    def forget(self) -> None:
        """Restart the clock of every lease."""
        self._silent_s = {}
