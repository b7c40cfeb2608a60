"""The fleet: workers, their targets, and timing caches."""

from __future__ import annotations

from pydantic import TypeAdapter

from farm.client.noun import Noun
from farm.schemas.fleet import NowView, QueueView, TargetView, TimingCacheView, WorkerView

_WORKERS = TypeAdapter(list[WorkerView])
_NOW = TypeAdapter(NowView)
_QUEUES = TypeAdapter(list[QueueView])
_TARGETS = TypeAdapter(list[TargetView])
_TIMING_CACHES = TypeAdapter(list[TimingCacheView])


class Fleet(Noun):
    """The farm's machines."""

    def workers(self) -> list[WorkerView]:
        """Every registered worker."""
        return self.http.read(_WORKERS, "GET", "/v1/workers")

    def queues(self) -> list[QueueView]:
        """Every queue with jobs in it, or that a known worker reads, the longest wait first."""
        return self.http.read(_QUEUES, "GET", "/v1/queues")

    def now(self) -> NowView:
        """Workers, queues and running jobs at this moment."""
        return self.http.read(_NOW, "GET", "/v1/now")

    def targets(self) -> list[TargetView]:
        """Every runtime × GPU tag, and whether it can be built."""
        return self.http.read(_TARGETS, "GET", "/v1/targets")

    def timing_caches(self) -> list[TimingCacheView]:
        """TensorRT's timing caches, one per GPU and toolchain."""
        return self.http.read(_TIMING_CACHES, "GET", "/v1/timing-caches")
