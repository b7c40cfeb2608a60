"""A version's engines beside those that they would replace, and the GPUs where they can't."""

from __future__ import annotations

from sqlalchemy.orm import Session

from farm.registry import compare
from farm.registry.names import Named
from farm.schemas.aliases import Beside, Lack, PromoteRequest


def compared(
    session: Session, model: Named, before: int | None, request: PromoteRequest
) -> tuple[list[Beside], list[Lack]]:
    """The version's engines beside those that they replace, by GPU, and the GPUs it can't serve."""
    beside: list[Beside] = []
    left_out: list[Lack] = []
    served = [] if before is None else compare.gpus(session, model, before)
    for gpu in dict.fromkeys([*served, *compare.gpus(session, model, request.version)]):
        old = compare.engine(session, model, gpu, before) if gpu in served else None
        new = compare.engine(session, model, gpu, request.version)
        if new is None:
            left_out.append(
                Lack(gpu=gpu, why=compare.why_none(session, model, gpu, request.version))
            )
            continue
        found = compare.beside(session, gpu, new, old)
        beside.append(found)
        why = _too_much(found, request)
        if why:
            left_out.append(Lack(gpu=gpu, why=why))
    return beside, left_out


def _too_much(found: Beside, request: PromoteRequest) -> str | None:
    """What the new engine costs more than it may, in words."""
    if found.latency_ratio is not None and found.latency_ratio > request.max_slowdown:
        return (
            f"its engine takes {found.latency_ratio:.2f} × the time of the one it replaces, and may take "
            f"{request.max_slowdown:.2f} ×"
        )
    if found.task_drop is not None and found.task_drop > request.max_drop:
        return (
            f"its engine's metric is {found.task_drop:.4f} below that of the one it replaces on the same "
            f"data, and may be {request.max_drop:.4f}"
        )
    return None
