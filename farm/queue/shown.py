"""How a job's attempts are shown by Flower: each is a task with an id of its own.

A message only announces work in its queue: Celery's own id for it says nothing about the job that is then
claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

#: The sender of messages, whichever process of the farm that is.
DOORBELL = "farm"
#: Code of an attempt that ended without an error of its own: its worker died, or gave the job back.
INTERRUPTED = "interrupted"

_NAMESPACE = UUID("77cb5629-b20c-5fd8-ba31-226a1d08dbe7")
_MOST_CHARS = 1000


def task_id(job_id: int, attempt: int) -> str:
    """The id of an attempt's task in Flower."""
    return str(uuid5(_NAMESPACE, f"{job_id}/{attempt}"))


def task_page(flower_url: str, job_id: int, attempt: int) -> str | None:
    """The address of an attempt's page in Flower; None if nobody said where Flower is."""
    return f"{flower_url}/task/{task_id(job_id, attempt)}" if flower_url else None


def attempt_fields(job_id: int, attempt: int, key: str) -> dict[str, Any]:
    """What each event about an attempt carries."""
    short = key.removeprefix("sha256:")[:12]
    return {"uuid": task_id(job_id, attempt), "job": job_id, "attempt": attempt, "key": short}


def arguments(job_id: int, attempt: int, key: str) -> str:
    """A message's arguments as workers show them."""
    return f"job={job_id} attempt={attempt} key={key.removeprefix('sha256:')[:12]}"


def failure(error: Mapping[str, Any]) -> str:
    """An error as Flower shows it: its code, what happened, and what to do."""
    hint = f" (hint: {error['hint']})" if error.get("hint") else ""
    return f"{error['code']}: {error['detail']}{hint}"[:_MOST_CHARS]


def interruption(cause: str) -> str:
    """Why an attempt was interrupted, as Flower shows it."""
    return failure({"code": INTERRUPTED, "detail": cause})
