"""The farm's queues for Flower's broker page: all of them, whether or not a worker reads them now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.tables import IS_QUEUED, Job
from farm.fleet.workers import Fleet
from farm.planning.policy import RTX_CAPABILITIES
from farm.specs import gpus
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.runtime import Runtime

#: Runtime → the GPUs for which it has queues; a product or a slice of a GPU has some once there is one.
_GPUS: Mapping[Runtime, Iterable[str]] = {
    Runtime.TENSORRT: gpus.COMPUTE_CAPABILITIES,
    Runtime.TENSORRT_RTX: RTX_CAPABILITIES,
    Runtime.ONNXRUNTIME: (gpus.CPU, *gpus.COMPUTE_CAPABILITIES),
    Runtime.AOTINDUCTOR: (gpus.CPU, *gpus.COMPUTE_CAPABILITIES),
    Runtime.TORCHSCRIPT: (gpus.CPU,),
}
ALWAYS = frozenset(
    {CPU_QUEUE, *(str(Queue(runtime, gpu)) for runtime, tags in _GPUS.items() for gpu in tags)}
)


class Queues:
    """Which queues there are, with their workers and waiting jobs, as of the last look."""

    def __init__(self, *, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._readers: Counter[str] = Counter()
        self._waiting: Mapping[str, int] = {}
        self.names = sorted(ALWAYS)

    def load(self, session: Session) -> None:
        fleet = Fleet.load(session, ttl_s=self._ttl_s)
        waiting = session.execute(
            select(Job.queue, func.count()).where(IS_QUEUED).group_by(Job.queue)
        )
        self._waiting = dict(waiting.tuples().all())
        self._readers = fleet.online_queues
        announced = {queue for worker in fleet.workers for queue in worker.queues}
        self.names = sorted(ALWAYS | announced | self._waiting.keys())

    def filled(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The broker's rows with what the farm knows: those with work first, then those with workers."""
        told = {row["name"]: dict(row) for row in rows}
        filled = [
            told.get(name, {"name": name, "messages": 0})
            | {"messages_ready": self._waiting.get(name, 0), "consumers": self._readers[name]}
            for name in self.names
        ]
        return sorted(
            filled,
            key=lambda row: (not row["messages_ready"], not row["consumers"], row["name"]),
        )


class Filled:
    """A broker of Flower's that knows the farm's queues."""

    def __init__(self, broker: Any, queues: Queues) -> None:
        self._broker = broker
        self._queues = queues

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        return self._queues.filled(await self._broker.queues(names))
