"""The metrics of this API process: its requests, and the process itself."""

from __future__ import annotations

import prometheus_client
from prometheus_client import Counter, Histogram, ProcessCollector
from prometheus_client.registry import CollectorRegistry

from farm.errors import QuotaExceeded, RateExceeded
from farm.specs import monitoring
from farm.specs.limits import Quota

#: They would double the series, and a restart shows in the process's start.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
UNROUTED = "unrouted"


class Requests:
    """Counts requests by their route's template, of which there are as many as operations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        answered, took = monitoring.HTTP_REQUESTS, monitoring.HTTP_DURATION
        self._answered = Counter(answered.name, answered.text, answered.labels, registry=registry)
        self._took = Histogram(
            took.name, took.text, took.labels, buckets=took.buckets, registry=registry
        )
        beyond = monitoring.QUOTA_REFUSALS
        self._refused = Counter(beyond.name, beyond.text, beyond.labels, registry=registry)
        for quota in Quota:
            self._refused.labels(quota)
        ProcessCollector(registry=registry)

    def answered(self, method: str, route: str | None, status: int, took_s: float) -> None:
        """Count a request.

        Parameters:
            route: its template; None if it was refused before it was routed, or there is none.
            took_s: until its answer began.
        """
        method, route = method if method in _METHODS else "other", route or UNROUTED
        self._answered.labels(method, route, str(status)).inc()
        self._took.labels(method, route).observe(took_s)

    def refused(self, err: Exception) -> None:
        """Count a request that was refused, if a limit of its key did so. Which key isn't told."""
        if isinstance(err, QuotaExceeded):
            self._refused.labels(err.quota).inc()
        elif isinstance(err, RateExceeded):
            self._refused.labels(Quota.REQUESTS).inc()
